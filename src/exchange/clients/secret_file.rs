//! The file of a client secret.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use arc_swap::ArcSwap;
use zeroize::Zeroizing;

use crate::{model::secret::Secret, telemetry::reload::fingerprint};

/// The longest client secret, in bytes. It keeps an operator who names another file than they mean from sending that to an
/// authorization server; and such a secret still fits the headers that servers take.
pub const MAX_SECRET: usize = 4096;

/// A client secret, and the file that it is read from, anew when that changes.
#[derive(Debug)]
pub struct SecretFile {
    pub path: PathBuf,
    /// What tells the content that was read first from another.
    pub seen: [u8; 32],
    current: ArcSwap<Secret>,
}

/// Why a file has no client secret. Nothing of its content is repeated.
#[derive(Debug, thiserror::Error)]
pub enum SecretFileError {
    #[error("cannot be read: {0}")]
    Unreadable(#[from] io::Error),
    #[error("is empty")]
    Empty,
    #[error("has more than {MAX_SECRET} bytes, which is no client secret")]
    TooLong,
    #[error(
        "is not one line of printable ASCII, which a client secret is (RFC 6749, appendix A.2); a newline at its end does \
         not count"
    )]
    NotSecret,
}

impl SecretFile {
    /// # Errors
    /// Where the file cannot be read, or has no client secret.
    pub fn read(path: &Path) -> Result<Self, SecretFileError> {
        // To open a pipe would wait for somebody who writes to it.
        if !path.metadata()?.is_file() {
            return Err(io::Error::other("it is no regular file").into());
        }
        let mut content = Zeroizing::new(Vec::new());
        // What tells a secret of the greatest length, with its newline, from a longer one.
        File::open(path)?.take(MAX_SECRET as u64 + 3).read_to_end(&mut content)?;
        let text = str::from_utf8(&content).map_err(|_| SecretFileError::NotSecret)?;
        let current = ArcSwap::from_pointee(secret(text)?);
        Ok(Self { path: path.to_owned(), seen: fingerprint(&[text]), current })
    }

    /// Takes what the file has by now.
    ///
    /// # Errors
    /// Where that is no client secret. The last one stays.
    pub fn take(&self, content: &str) -> Result<(), SecretFileError> {
        self.current.store(secret(content)?.into());
        Ok(())
    }

    /// The secret as it is by now.
    pub fn secret(&self) -> Secret {
        Secret::clone(&self.current.load())
    }
}

/// The secret of a file's content: all of it, without the newline that editors and `echo` put behind it.
fn secret(content: &str) -> Result<Secret, SecretFileError> {
    let text = content.strip_suffix('\n').map_or(content, |line| line.strip_suffix('\r').unwrap_or(line));
    match text {
        "" => Err(SecretFileError::Empty),
        text if text.len() > MAX_SECRET => Err(SecretFileError::TooLong),
        text if text.bytes().all(|byte| matches!(byte, b' '..=b'~')) => Ok(Secret::new(text)),
        _ => Err(SecretFileError::NotSecret),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_one_secret() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("secret");
        let longest = "x".repeat(MAX_SECRET);
        for (content, read) in [
            ("s3cret", Ok("s3cret")),
            ("s3cret\n", Ok("s3cret")),
            ("s3cret\r\n", Ok("s3cret")),
            (" s 3+% ", Ok(" s 3+% ")),
            (&format!("{longest}\r\n"), Ok(longest.as_str())),
            (&format!("{longest}x"), Err("has more than 4096 bytes, which is no client secret")),
            (&"x".repeat(10_000), Err("has more than 4096 bytes, which is no client secret")),
            ("", Err("is empty")),
            ("\n", Err("is empty")),
            ("SECRET\n\n", Err("is not one line")),
            ("SECRET\nSECRET", Err("is not one line")),
            ("SECRET\tSECRET", Err("is not one line")),
            ("SECRÉT", Err("is not one line")),
        ] {
            std::fs::write(&path, content).expect("a file");
            let found = SecretFile::read(&path);
            match (found, read) {
                (Ok(found), Ok(secret)) => assert_eq!(found.secret().expose(), secret),
                (Err(error), Err(words)) => {
                    assert!(error.to_string().starts_with(words), "{error}");
                    assert!(!error.to_string().contains("SECR"), "{error}");
                }
                (found, _) => panic!("{content:?}: {found:?}"),
            }
        }
        std::fs::write(&path, b"\xff").expect("a file");
        assert!(matches!(SecretFile::read(&path), Err(SecretFileError::NotSecret)));
        for unreadable in [dir.path().to_owned(), dir.path().join("missing")] {
            assert!(matches!(SecretFile::read(&unreadable), Err(SecretFileError::Unreadable(_))));
        }
    }

    #[test]
    fn a_bad_content_leaves_the_last_secret() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("secret");
        std::fs::write(&path, "SECRET-1").expect("a file");
        let file = SecretFile::read(&path).expect("a secret");
        assert!(!format!("{file:?}").contains("SECRET"));
        for (content, then) in [("", "SECRET-1"), ("SECRET-2\n", "SECRET-2"), ("a\nb", "SECRET-2")] {
            assert_eq!(file.take(content).is_ok(), then == content.trim_end());
            assert_eq!(file.secret().expose(), then);
        }
    }
}
