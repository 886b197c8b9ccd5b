//! Where tokens are handed out, and to whom.

use envoy_cimd::contract::proto::{GetUpstreamTokenRequest, upstream_tokens_client::UpstreamTokensClient};
use tonic::{
    Code,
    transport::{Certificate, ClientTlsConfig, Endpoint, Identity},
};

use crate::{
    stack::{Certificates, Choreographer, ready_address},
    world::{executable, run},
};

/// A listener that anybody could reach is refused; with mTLS, so is who proves nothing.
#[tokio::test]
async fn only_a_unix_socket_or_mtls() {
    for (flags, error) in [
        (&["--tokens-listen", "127.0.0.1:0"][..], "whoever reaches it may have every user's token"),
        (&["--tokens-listen", "127.0.0.1:0", "--insecure-grpc"], "whoever reaches it may have every user's token"),
        (&["--tokens-listen", "127.0.0.1:0", "--tls-cert", "/nowhere", "--tls-key", "/nowhere"], "--client-ca"),
        (
            &[
                "--tokens-listen",
                "127.0.0.1:0",
                "--tls-cert",
                "/nowhere",
                "--tls-key",
                "/nowhere",
                "--client-ca",
                "/nowhere",
            ],
            "--client-ca /nowhere: No such file",
        ),
        (
            &["--tokens-listen", "unix:/dev/null/s", "--tls-cert", "/nowhere"],
            "--tls-cert, --tls-key and --client-ca go together",
        ),
    ] {
        for command in ["serve", "choreographer"] {
            let (code, _, stderr) = run(
                &[&[command, "--state-dir=/dev/null/x", "--listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0"], flags]
                    .concat(),
                &[],
            );
            assert_eq!(code, Some(1), "{stderr}");
            assert!(stderr.contains(error) && !stderr.contains("\"ready\""), "{stderr}");
        }
    }
    let (ours, others) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let certificates = Certificates::make(ours.path(), &["localhost"]);
    let strangers = Certificates::make(others.path(), &["localhost"]);
    let text = |path: &std::path::Path| path.to_str().expect("text").to_owned();
    let (cert, key, ca) = (text(&certificates.cert), text(&certificates.key), text(&certificates.ca));
    let flags = ["--tokens-listen", "127.0.0.1:0", "--tls-cert", &cert, "--tls-key", &key, "--client-ca", &ca];
    let mut process =
        Choreographer::start(&executable(), &[&flags[..], &["--state-dir", "/dev/null/x"]].concat()).await;
    let address = process.process.line(|line| ready_address(line, "tokens")).await;
    let port = address.rsplit_once(':').expect("a port").1.to_owned();
    // With a list of its own, --allow-peer is not asked.
    let lists = ["--allow-peer", "localhost", "--tokens-allow-peer", "another.example"];
    let mut closed = Choreographer::start(&executable(), &[&flags[..], &lists].concat()).await;
    let other = closed.process.line(|line| ready_address(line, "tokens")).await;
    let other = other.rsplit_once(':').expect("a port").1.to_owned();
    let read = |path: &std::path::Path| std::fs::read(path).expect("a file");
    for (port, client, good) in [
        (&port, Some(&certificates), true),
        (&port, None, false),
        (&port, Some(&strangers), false),
        (&other, Some(&certificates), false),
    ] {
        let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(&certificates.ca)));
        if let Some(client) = client {
            tls = tls.identity(Identity::from_pem(read(&client.cert), read(&client.key)));
        }
        let endpoint = Endpoint::from_shared(format!("https://localhost:{port}")).expect("an address");
        let channel = endpoint.tls_config(tls).expect("certificates").connect().await;
        let answered = match channel {
            Ok(channel) => {
                UpstreamTokensClient::new(channel).get_upstream_token(GetUpstreamTokenRequest::default()).await
            }
            Err(error) => Err(tonic::Status::from_error(Box::new(error))),
        };
        // Who is let in is told what is wrong with the request.
        let code = answered.expect_err("no token").code();
        assert_eq!(code == Code::InvalidArgument, good, "{code:?}");
    }
    let plain = Endpoint::from_shared(format!("http://127.0.0.1:{port}")).expect("an address").connect().await;
    let refused = match plain {
        Ok(channel) => UpstreamTokensClient::new(channel).get_upstream_token(GetUpstreamTokenRequest::default()).await,
        Err(error) => Err(tonic::Status::from_error(Box::new(error))),
    };
    assert_ne!(refused.expect_err("no token").code(), Code::InvalidArgument);
}
