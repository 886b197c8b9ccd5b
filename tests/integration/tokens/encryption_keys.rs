//! The keys that tokens are sealed with, and how they change.

use envoy_cimd::model::secret::generate_key_line;

use super::{Kept, connect, party, token};
use crate::{
    authorization_server::Lie,
    exchange::{CLIENT, Party, single},
    stack::metric,
    world::run,
};

/// Keys are rotated while processes run; a file that is no good, or another store's, changes nothing.
async fn keys_rotate(kept: Kept) {
    let flags = kept.flags();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let (mut party, client) = party(vec![Lie::none("good")], &flags).await;
    connect(&party, "good", single(), CLIENT).await;
    let had = token(&client, &party, "good", single(), CLIENT).await.expect("a token");
    let shared = if kept.url.is_shared() { Some(kept.again(&party).await) } else { None };
    let (mut other, others) = shared.unzip();
    let old = std::fs::read_to_string(&kept.keys).expect("the keys").trim().to_owned();
    let (new, strange) = (generate_key_line().expect("a key"), generate_key_line().expect("a key"));
    let mut reloads = 0;
    let mut change = async |party: &mut Party, text: &str, words: &str| {
        std::fs::write(&kept.keys, text).expect("a key file");
        for process in [Some(&mut party.process), other.as_mut()].into_iter().flatten() {
            let line = loop {
                let output = process.process.output();
                let told = |line: &&str| {
                    line.contains("\"file\":\"encryption_keys\"") && line.contains("envoy_cimd::telemetry::reload")
                };
                if let Some(line) = output.lines().filter(told).nth(reloads) {
                    break line.to_owned();
                }
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            };
            assert!(line.contains(words), "{line}");
            let ok = metric(&process.admin, "envoy_cimd_reload_ok{file=\"encryption_keys\"}").await;
            assert_eq!(ok, Some(u64::from(words == "read again")), "{words}");
        }
        for client in [Some(&client), others.as_ref()].into_iter().flatten() {
            assert_eq!(token(client, party, "good", single(), CLIENT).await.as_ref(), Ok(&had), "{words}");
        }
        reloads += 1;
    };
    change(&mut party, "no-key", "line 1 is not a base64url key of 256 bits").await;
    change(&mut party, &strange, "has none of the keys that the store was sealed with").await;
    change(&mut party, &format!("{old}\n{new}\n"), "read again").await;
    change(&mut party, &new, "has none of the keys that the store was sealed with").await;
    change(&mut party, &format!("{new}\n{old}"), "read again").await;
    // What was read since is sealed with the new one, and the store knows it.
    change(&mut party, &new, "read again").await;
    connect(&party, "good", single(), CLIENT).await;
    for process in [Some(&mut party.process), other.as_mut()].into_iter().flatten() {
        assert_eq!(process.process.stop().await, Some(0));
        let output = process.process.output();
        assert!([&old, &new, &strange].iter().all(|key| !output.contains(key.as_str())), "{output}");
    }
    let (_again, client) = kept.again(&party).await;
    assert!(token(&client, &party, "good", single(), CLIENT).await.is_ok());
}

#[tokio::test]
async fn encryption_keys_change_while_it_runs() {
    keys_rotate(Kept::in_file()).await;
}

#[tokio::test]
#[ignore = "needs redis-server: make test-redis"]
async fn redis_encryption_keys_change_at_two_replicas() {
    let (kept, _redis) = Kept::in_redis().await;
    keys_rotate(kept).await;
}

/// A record under an older key is sealed anew when it is read, so that the older key can go.
#[tokio::test]
async fn encryption_keys_rotate() {
    let kept = Kept::in_file();
    let flags = kept.flags();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let (mut party, _) = party(vec![Lie::none("good")], &flags).await;
    connect(&party, "good", single(), CLIENT).await;
    assert_eq!(party.process.process.stop().await, Some(0));
    let old = std::fs::read_to_string(&kept.keys).expect("the keys");
    let new = generate_key_line().expect("a key");
    for keys in [format!("{new}\n{old}\n"), new.clone()] {
        std::fs::write(&kept.keys, keys).expect("the keys");
        let (mut again, client) = kept.again(&party).await;
        assert!(token(&client, &party, "good", single(), CLIENT).await.is_ok());
        assert_eq!(again.process.stop().await, Some(0));
    }
    // The old key alone is another store's now, and the error names the file.
    std::fs::write(&kept.keys, old).expect("the keys");
    let flags = kept.flags();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let (code, _, stderr) =
        run(&[&["choreographer", "--listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0"], &flags[..]].concat(), &[]);
    assert!(code == Some(1) && stderr.contains(kept.keys.to_str().expect("text")), "{stderr}");
}
