//! Files that hold secrets, and who besides their owner gets at them.

use std::{
    fmt,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use rustix::process::geteuid;

/// What is wrong with a file that holds secrets: others have a say in it. Worth a warning and no more, since an operator
/// may mean it: Kubernetes gives a pod its secrets by the group.
#[derive(Debug, PartialEq)]
pub struct Exposure {
    path: PathBuf,
    fault: Fault,
}

#[derive(Debug, PartialEq)]
enum Fault {
    /// The permissions of the file, which let in its group or everybody.
    Mode(u32),
    /// Who owns it, and so may let in whom they like: neither this process's user nor root.
    Owner(u32),
}

/// What is wrong with a file; nothing where it is not there.
pub fn exposures(path: &Path) -> Vec<Exposure> {
    // Of what a link points at.
    let Ok(file) = std::fs::metadata(path) else { return Vec::new() };
    faults(file.mode() & 0o7777, file.uid(), geteuid().as_raw())
        .map(|fault| Exposure { path: path.to_owned(), fault })
        .collect()
}

/// Those of a file of this mode and owner, for a process of the user `us`.
fn faults(mode: u32, owner: u32, us: u32) -> impl Iterator<Item = Fault> {
    let by_mode = (mode & 0o066 != 0).then_some(Fault::Mode(mode));
    let by_owner = (owner != 0 && owner != us).then_some(Fault::Owner(owner));
    by_mode.into_iter().chain(by_owner)
}

/// Logs what is wrong with a file.
pub fn warn(path: &Path) {
    for exposure in exposures(path) {
        tracing::warn!("{exposure}");
    }
}

impl fmt::Display for Exposure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} holds secrets, and ", self.path.display())?;
        match self.fault {
            Fault::Mode(mode) => {
                let who = if mode & 0o006 != 0 { "everybody" } else { "its group" };
                let may = match mode & 0o066 {
                    bits if bits & 0o022 == 0 => "read",
                    bits if bits & 0o044 == 0 => "write",
                    _ => "read or write",
                };
                write!(f, "its mode {mode:04o} lets {who} {may} it: `chmod 600` keeps it to its owner")
            }
            Fault::Owner(owner) => write!(f, "its owner is the user {owner}, neither this process's nor root"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::Permissions, os::unix::fs::PermissionsExt};

    use super::*;

    #[test]
    fn who_else_gets_at_a_file() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("keys");
        assert_eq!(exposures(&path), [], "it is not there");
        std::fs::write(&path, "secret").expect("a file");
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).expect("a link");
        for (mode, lets) in [
            (0o600, None),
            (0o400, None),
            (0o700, None),
            (0o711, None),
            (0o640, Some("its mode 0640 lets its group read it")),
            (0o440, Some("its mode 0440 lets its group read it")),
            (0o620, Some("its mode 0620 lets its group write it")),
            (0o660, Some("its mode 0660 lets its group read or write it")),
            (0o644, Some("its mode 0644 lets everybody read it")),
            (0o602, Some("its mode 0602 lets everybody write it")),
            (0o666, Some("its mode 0666 lets everybody read or write it")),
        ] {
            std::fs::set_permissions(&path, Permissions::from_mode(mode)).expect("a mode");
            for named in [&path, &link] {
                let found: Vec<String> = exposures(named).iter().map(ToString::to_string).collect();
                let expected = lets.map(|lets| {
                    format!("{} holds secrets, and {lets}: `chmod 600` keeps it to its owner", named.display())
                });
                assert_eq!(found, Vec::from_iter(expected), "{mode:o}");
            }
        }
    }

    #[test]
    fn an_owner_who_is_neither_us_nor_root_is_named() {
        let owners = |owner, us| faults(0o600, owner, us).collect::<Vec<_>>();
        assert_eq!(owners(1000, 1000), []);
        assert_eq!(owners(0, 1000), []);
        assert_eq!(owners(0, 0), []);
        for (owner, us) in [(1001, 1000), (1001, 0)] {
            let [fault] = owners(owner, us).try_into().expect("one fault");
            assert_eq!(
                Exposure { path: "/keys".into(), fault }.to_string(),
                "/keys holds secrets, and its owner is the user 1001, neither this process's nor root"
            );
        }
        assert_eq!(faults(0o644, 1001, 0).count(), 2, "each for itself");
    }
}
