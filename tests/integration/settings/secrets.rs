//! Files of secrets: keys that anybody can guess, and files that others can read.

use std::path::Path;

use envoy_cimd::{model::secret::generate_key_line, store::url::StoreUrl};

use super::{file, path_of};
use crate::{
    stack::{Certificates, Cimd, set_mode},
    world::{executable, run},
};

/// A key of zeros is what a placeholder leaves. It is refused wherever keys are read, before anything is bound.
#[test]
fn keys_that_anybody_can_guess_are_refused() {
    let good = generate_key_line().expect("a key");
    let guessable = file(&format!("{good}\n{}\n", "A".repeat(43)));
    let path = path_of(&guessable);
    for key in ["state_keys", "encryption_keys"] {
        let config = file(&format!("{key}: {path}\n"));
        let flag = format!("--{}", key.replace('_', "-"));
        let said = format!("envoy-cimd: {flag} {path}: line 2 is one byte over and over, which anybody can guess");
        let none = [("ENVOY_CIMD_STATE_DIR", "/dev/null/none")];
        for command in ["serve", "check"] {
            let (code, stdout, stderr) = run(&[command, "--config", path_of(&config)], &none);
            assert_eq!((code, stdout.as_str()), (Some(1), ""), "{command} {key}: {stderr}");
            assert!(stderr.starts_with(&said), "{command} {key}: {stderr}");
            assert!(!stderr.contains("AAAA") && !stderr.contains(&good), "nothing of it is repeated: {stderr}");
        }
        if key == "encryption_keys" {
            let (code, _, stderr) = run(&["choreographer", "--listen", "127.0.0.1:0", &flag, path], &none);
            assert_eq!((code, stderr.starts_with(&said)), (Some(1), true), "{stderr}");
        }
    }
}

/// The files of secrets, each in its turn open to others: that is said at start, by `check`, and when one is read again.
#[tokio::test]
async fn who_else_gets_at_secrets_is_told() {
    let dir = tempfile::tempdir().expect("a folder");
    let certificates = Certificates::make(dir.path(), &["localhost"]);
    let text = |path: &Path| path.to_str().expect("text").to_owned();
    let [state, sealing, store] = ["state.keys", "encryption.keys", "store"].map(|name| dir.path().join(name));
    std::fs::write(&state, generate_key_line().expect("a key")).expect("written");
    std::fs::write(&sealing, generate_key_line().expect("a key")).expect("written");
    let open = StoreUrl::File(store.clone()).open(Some(&sealing), None).await.expect("a store");
    drop(open);
    let config = file(&format!(
        "listen: 127.0.0.1:0\nadmin_listen: 127.0.0.1:0\nstate_keys: {}\nencryption_keys: {}\nstore: file:{}\ntls_cert: {}\n\
         tls_key: {}\nclient_ca: {}\n",
        text(&state),
        text(&sealing),
        text(&store),
        text(&certificates.cert),
        text(&certificates.key),
        text(&certificates.ca)
    ));
    let secrets = [&state, &sealing, &store, &certificates.key];
    for path in secrets {
        set_mode(path, 0o600);
    }
    let checked = || {
        let (code, stdout, stderr) = run(&["check", "--config", path_of(&config)], &[]);
        assert_eq!((code, stderr.as_str()), (Some(0), ""));
        stdout
    };
    let mut quiet = Cimd::start(&executable(), &["--config", path_of(&config)]).await;
    assert!(!quiet.process.output().contains("holds secrets"), "{}", quiet.process.output());
    quiet.process.stop().await;
    assert!(!checked().contains("holds secrets"), "{}", checked());
    for path in secrets {
        set_mode(path, 0o640);
        let warning = format!("{} holds secrets, and its mode 0640 lets its group read it", path.display());
        assert!(checked().contains(&format!("warning: {warning}")), "{}", checked());
        let mut cimd = Cimd::start(&executable(), &["--config", path_of(&config)]).await;
        let output = cimd.process.output();
        let warned: Vec<&str> = output.lines().filter(|line| line.contains("holds secrets")).collect();
        assert!(warned.len() == 1 && warned[0].contains(&warning) && warned[0].contains("WARN"), "{warned:?}");
        if [&state, &certificates.key].contains(&path) {
            set_mode(path, 0o644);
            let content = std::fs::read_to_string(path).expect("text");
            std::fs::write(path, content + "\n").expect("written");
            cimd.process.line(|line| line.contains("its mode 0644 lets everybody read it").then_some(())).await;
        }
        set_mode(path, 0o600);
        cimd.process.stop().await;
    }
}
