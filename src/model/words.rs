//! Words that somebody else chose, made fit for a page. (That they are no markup is the templates' to see to.)

/// How much of a name is shown, in characters.
pub const LONGEST: usize = 100;

/// A text as a person sees it: on one line, nothing in it that is not seen or that turns what stands around it, and its
/// beginning where it has more than `longest` characters.
pub fn displayed(text: &str, longest: usize) -> String {
    let mut characters = text.chars().filter(|c| !is_unseen(*c));
    let mut shown: String = characters.by_ref().take(longest).collect();
    if characters.next().is_some() {
        shown.pop();
        shown.push('…');
    }
    shown.trim().to_owned()
}

/// Whether a character has no place in a line of text: a control, a mark that turns its direction (Unicode Technical
/// Report 36, section 2.5), one that breaks the line, or one that carries hidden text.
pub fn is_unseen(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{61c}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_shown_that_is_not_seen() {
        for (text, shown) in [
            ("anna@example.com", "anna@example.com"),
            (" Zoë Ångström\u{a0}", "Zoë Ångström"),
            ("علی رضا", "علی رضا"),
            ("👩\u{200d}💻", "👩\u{200d}💻"),
            ("a\nb\tc\0d\u{7f}e\u{85}f", "abcdef"),
            ("a\u{202e}moc.elpmaxe\u{202c}b", "amoc.elpmaxeb"),
            ("\u{2066}a\u{2069}\u{200f}\u{61c}\u{200e}\u{2029}", "a"),
            ("a\u{e0061}\u{feff}\u{200b}b", "ab"),
            ("<b>&\"'", "<b>&\"'"),
            ("\u{202e}\n", ""),
            ("", ""),
        ] {
            assert_eq!(displayed(text, LONGEST), shown, "{text:?}");
        }
        assert_eq!(displayed(&"é".repeat(100), LONGEST), "é".repeat(100));
        assert_eq!(displayed(&format!("{}\n", "é".repeat(100)), LONGEST), "é".repeat(100));
        assert_eq!(displayed(&"é".repeat(101), LONGEST), format!("{}…", "é".repeat(99)));
    }
}
