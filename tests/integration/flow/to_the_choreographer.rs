//! The ways to a choreographer of another process.

use tonic::transport::{Certificate, Identity, ServerTlsConfig};

use super::{Flows, NOTES, honest, press};
use crate::{
    choreographer::{Fake, Place},
    stack::Certificates,
};

#[tokio::test]
async fn a_choreographer_on_a_unix_socket() {
    let dir = tempfile::tempdir().expect("a folder");
    let flows = Flows::on(Fake::at(Place::Unix(dir.path().join("c.sock"))), &["--single-user"], &|_| {}).await;
    let begun = flows.begin(NOTES, "").await;
    assert_eq!(flows.send(honest(&begun)).await.status, 303);
    flows.finish().await;
}

/// Each side proves who it is; without that, or with somebody else's proof, nothing is begun.
#[tokio::test]
async fn a_choreographer_behind_mtls() {
    let (ours, others) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let certificates = Certificates::make(ours.path(), &["localhost"]);
    let strangers = Certificates::make(others.path(), &["localhost"]);
    let read = |path: &std::path::Path| std::fs::read(path).expect("a file");
    let tls = ServerTlsConfig::new()
        .identity(Identity::from_pem(read(&certificates.cert), read(&certificates.key)))
        .client_ca_root(Certificate::from_pem(read(&certificates.ca)));
    let text = |path: &std::path::Path| path.to_str().expect("text").to_owned();
    for (ca, client, good) in [
        (&certificates, Some(&certificates), true),
        (&certificates, None, false),
        (&certificates, Some(&strangers), false),
        (&strangers, Some(&certificates), false),
    ] {
        let mut flags = vec!["--single-user".to_owned(), "--choreographer-ca".to_owned(), text(&ca.ca)];
        if let Some(client) = client {
            flags.extend(["--choreographer-cert".to_owned(), text(&client.cert)]);
            flags.extend(["--choreographer-key".to_owned(), text(&client.key)]);
        }
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let fake = Fake::at(Place::Tls(([127, 0, 0, 1], 0).into(), Box::new(tls.clone())));
        let flows = Flows::on(fake, &flags, &|_| {}).await;
        let answer = flows.send(press(NOTES, "")).await;
        assert_eq!(answer.status == 303, good, "{answer:?}");
        assert!(good || [502, 503].contains(&answer.status), "{answer:?}");
        assert_eq!(flows.fake.begins(), usize::from(good));
    }
}
