//! A query, read strictly: what is malformed is refused, not mended.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

/// The values of `names` in a query of at most `longest` bytes, form-decoded once; an empty value counts as absent
/// (OAuth 2.1, section 3.1). Other parameters are ignored.
///
/// # Errors
/// Where the query is longer, is not percent-encoded UTF-8, or repeats one of `names`.
pub fn parameters<'a, const N: usize>(
    query: &'a [u8],
    longest: usize,
    names: [&'static str; N],
) -> Result<[Option<Cow<'a, str>>; N], &'static str> {
    if query.len() > longest {
        return Err("the query is too long");
    }
    let query = std::str::from_utf8(query).map_err(|_| "the query is not a text")?;
    if query.contains('%') {
        check_encoding(query)?;
    }
    let mut found = [const { None }; N];
    for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
        let Some(slot) = found.iter_mut().zip(names).find_map(|(slot, known)| (name == known).then_some(slot)) else {
            continue;
        };
        if slot.replace(value).is_some() {
            return Err("the query repeats a parameter");
        }
    }
    Ok(found.map(|value: Option<Cow<'_, str>>| value.filter(|value| !value.is_empty())))
}

/// The form parser keeps a stray `%` and replaces bad UTF-8, so both are looked for first. Its delimiters are ASCII: the
/// whole is UTF-8 only if each part is.
fn check_encoding(query: &str) -> Result<(), &'static str> {
    let stray = query
        .split('%')
        .skip(1)
        .any(|rest| !rest.as_bytes().first_chunk::<2>().is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit)));
    if stray || percent_decode_str(query).decode_utf8().is_err() {
        return Err("the query is not percent-encoded UTF-8");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strictly() {
        let long = format!("a={}", "x".repeat(100));
        for (query, expected) in [
            ("", Ok([None, None])),
            ("a=1&b=2", Ok([Some("1"), Some("2")])),
            ("b=x+y%20z%2B&c=3&c=4", Ok([None, Some("x y z+")])),
            ("a=%25&b=", Ok([Some("%"), None])),
            ("%61=1", Ok([Some("1"), None])),
            ("a=%C3%A4", Ok([Some("ä"), None])),
            ("a", Ok([None, None])),
            ("a=1&a=1", Err("the query repeats a parameter")),
            ("a=&a=1", Err("the query repeats a parameter")),
            ("a=1&%61=2", Err("the query repeats a parameter")),
            ("a=%", Err("the query is not percent-encoded UTF-8")),
            ("a=%2", Err("the query is not percent-encoded UTF-8")),
            ("a=%zz", Err("the query is not percent-encoded UTF-8")),
            ("c=%FF", Err("the query is not percent-encoded UTF-8")),
            ("a=%C3", Err("the query is not percent-encoded UTF-8")),
            ("a=%C3&b=%A4", Err("the query is not percent-encoded UTF-8")),
            (&long, Err("the query is too long")),
        ] {
            let found = parameters(query.as_bytes(), 101, ["a", "b"]);
            let expected = expected.map(|values| values.map(|value: Option<&str>| value.map(Cow::from)));
            assert_eq!(found, expected, "{query}");
        }
        assert_eq!(parameters(b"a=\xff", 101, ["a"]), Err("the query is not a text"));
    }
}
