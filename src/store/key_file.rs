//! The key file of a store, and the record in the store that tells whether it is the right one.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use zeroize::Zeroizing;

use super::whole_file;
use crate::model::{
    seal::{SealError, Sealer, UnsealError},
    secret::{KeyFileError, NoRandomness, generate_key_line, parse_keys},
};

/// The purpose that the check record is sealed for.
const CHECK: &str = "key check";

/// Why a key file cannot be used. Nothing of its content is repeated.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    #[error("cannot be read: {0}")]
    Unreadable(io::Error),
    #[error(transparent)]
    Malformed(#[from] KeyFileError),
    #[error("cannot be written: {0}")]
    Unwritable(io::Error),
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
    #[error("is missing, and nothing in the store opens without its keys: put it back")]
    Lost,
    #[error("has none of the keys that the store was sealed with")]
    Wrong,
}

/// Where the keys of a file store are unless a setting says otherwise: beside it.
pub fn beside(store: &Path) -> PathBuf {
    let mut path = store.as_os_str().to_owned();
    path.push(".keys");
    path.into()
}

/// Reads a key file.
///
/// # Errors
/// Where it cannot be read, or has no keys in the form that `envoy-cimd keygen` prints.
pub fn read(path: &Path) -> Result<Sealer, KeysError> {
    sealer(&text(path)?)
}

/// What is in a key file.
///
/// # Errors
/// Where it cannot be read.
pub fn text(path: &Path) -> Result<Zeroizing<String>, KeysError> {
    fs::read_to_string(path).map(Zeroizing::new).map_err(KeysError::Unreadable)
}

/// Makes a key file of one fresh key, for its owner only. It is there whole or not at all, also after a crash.
///
/// The caller sees to it that nobody else makes it at the same time.
///
/// # Errors
/// Where it cannot be written, or the system gives no randomness.
pub fn create(path: &Path) -> Result<Sealer, KeysError> {
    let text = Zeroizing::new(generate_key_line()? + "\n");
    let sealer = sealer(&text)?;
    write(path, text.as_bytes()).map_err(KeysError::Unwritable)?;
    Ok(sealer)
}

/// The check record: what a store keeps to know its keys by.
///
/// # Errors
/// As [`Sealer::seal`].
pub fn check_record(sealer: &Sealer) -> Result<Vec<u8>, SealError> {
    sealer.seal(CHECK, &[], &[])
}

/// Whether these are the keys that a store's check record was made with; and, where the first key is not the one, the
/// record to put in its place, so that the old key can go one day.
///
/// # Errors
/// [`KeysError::Wrong`] where they are others.
pub fn check(sealer: &Sealer, record: &[u8]) -> Result<Option<Vec<u8>>, KeysError> {
    match sealer.open(CHECK, &[], record) {
        Ok(opened) if opened.stale => Ok(check_record(sealer).ok()),
        Ok(_) => Ok(None),
        Err(UnsealError::UnknownKey | UnsealError::DoesNotOpen | UnsealError::BadVersion | UnsealError::Malformed) => {
            Err(KeysError::Wrong)
        }
    }
}

/// The keys in the text of a key file.
///
/// # Errors
/// Where it has none in the form that `envoy-cimd keygen` prints.
pub fn sealer(text: &str) -> Result<Sealer, KeysError> {
    Sealer::new(&parse_keys(text)?).ok_or(KeysError::Malformed(KeyFileError::Empty))
}

fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    whole_file::make(path, |mut file, _| {
        file.write_all(content)?;
        file.sync_all()
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_fresh_file_is_its_owners_and_reads_again() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = beside(&dir.path().join("store.redb"));
        assert_eq!(path, dir.path().join("store.redb.keys"));
        // What a crash may have left, readable for everybody.
        fs::write(dir.path().join("store.redb.keys.new"), "half").expect("a file");
        let sealer = create(&path).expect("keys");
        assert_eq!(fs::metadata(&path).expect("a file").permissions().mode() & 0o7777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).expect("a folder").count(), 1, "no draft is left");
        let record = check_record(&sealer).expect("a record");
        assert!(check(&read(&path).expect("keys"), &record).expect("the same keys").is_none());
        let text = fs::read_to_string(&path).expect("text");
        assert_eq!(text.trim_end().len(), 43);
    }

    #[test]
    fn a_bad_file_says_why_and_repeats_nothing() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("keys");
        assert!(matches!(read(&path), Err(KeysError::Unreadable(_))));
        fs::write(&path, "no-key").expect("a file");
        let error = read(&path).expect_err("no key").to_string();
        assert_eq!(error, "line 1 is not a base64url key of 256 bits, as `envoy-cimd keygen` prints");
        fs::write(&path, "").expect("a file");
        assert!(matches!(read(&path), Err(KeysError::Malformed(KeyFileError::Empty))));
        let error = create(&dir.path().join("missing/keys")).expect_err("no folder");
        assert!(matches!(error, KeysError::Unwritable(_)), "{error}");
    }

    #[test]
    fn other_keys_are_told_and_old_ones_can_go() {
        let lines: Vec<String> = (0..3).map(|_| generate_key_line().expect("a key")).collect();
        let [one, two, three] = &lines[..] else { panic!("three lines") };
        let record = check_record(&sealer(one).expect("a key")).expect("a record");
        assert!(matches!(check(&sealer(two).expect("a key"), &record), Err(KeysError::Wrong)));
        assert!(check(&sealer(&format!("{one}\n{two}")).expect("keys"), &record).expect("its keys").is_none());
        let rotated = sealer(&format!("{two}\n{one}")).expect("keys");
        let newer = check(&rotated, &record).expect("its keys").expect("a record to replace it");
        assert!(check(&sealer(two).expect("a key"), &newer).expect("its key").is_none());
        for bad in [&b""[..], b"x", &[2; 60]] {
            assert!(matches!(check(&sealer(three).expect("a key"), bad), Err(KeysError::Wrong)));
        }
    }
}
