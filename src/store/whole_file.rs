//! Files that are there whole or not at all, also after a crash.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

/// Makes a file for its owner only (mode 0600): `fill` writes it under another name, and then it is moved.
///
/// The caller sees to it that nobody else makes it at the same time.
///
/// # Errors
/// Where it cannot be written, and those of `fill`.
pub fn make<E: From<io::Error>>(path: &Path, fill: impl FnOnce(File, &Path) -> Result<(), E>) -> Result<(), E> {
    make_as(0o600, path, fill)
}

/// The same of a file that is no secret: who may read it is for the umask to say.
///
/// # Errors
/// Where it cannot be written.
pub fn make_public(path: &Path, content: &[u8]) -> io::Result<()> {
    make_as(0o666, path, |mut file, _| {
        file.write_all(content)?;
        file.sync_all()
    })
}

fn make_as<E: From<io::Error>>(
    mode: u32,
    path: &Path,
    fill: impl FnOnce(File, &Path) -> Result<(), E>,
) -> Result<(), E> {
    let mut draft = path.as_os_str().to_owned();
    draft.push(".new");
    let draft = Path::new(&draft);
    // Of a crash, perhaps; its mode might be another.
    match fs::remove_file(draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    fill(OpenOptions::new().write(true).create_new(true).mode(mode).open(draft)?, draft)?;
    fs::rename(draft, path)?;
    // What is written elsewhere next may reach the disk before this file's name does.
    Ok(folder(path)?.sync_all()?)
}

/// The folder that a file is in.
///
/// # Errors
/// Where it cannot be opened.
pub fn folder(path: &Path) -> io::Result<File> {
    File::open(path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new(".")))
}
