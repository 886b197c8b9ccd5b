//! HTTP/2 written by hand, for what no client library sends: a `:path` that is no text.

use std::sync::Arc;

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::world::World;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
/// END_STREAM and END_HEADERS.
const WHOLE: u8 = 0x5;

/// Sends a request without a body, and gives the body of the answer.
pub async fn send(world: &World, host: &str, method: &str, path: &[u8]) -> Vec<u8> {
    let mut roots = RootCertStore::empty();
    let ca = CertificateDer::from_pem_file(&world.certificates.ca).expect("a certificate");
    roots.add(ca).expect("an authority");
    let mut config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let name = ServerName::try_from(host.to_owned()).expect("a name");
    let stream = TcpStream::connect(world.envoy.https).await.expect("a connection");
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let mut stream = connector.connect(name, stream).await.expect("TLS");

    let mut block = Vec::new();
    for (name, value) in
        [(":method", method.as_bytes()), (":scheme", b"https"), (":authority", host.as_bytes()), (":path", path)]
    {
        // A literal that is not indexed, with a new name (RFC 7541, section 6.2.2), each text as it is.
        block.push(0);
        for text in [name.as_bytes(), value] {
            block.push(u8::try_from(text.len()).ok().filter(|length| *length < 127).expect("a short text"));
            block.extend(text);
        }
    }
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(SETTINGS, 0, 0, &[]));
    bytes.extend(frame(HEADERS, WHOLE, 1, &block));
    stream.write_all(&bytes).await.expect("sent");

    let mut body = Vec::new();
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await.expect("a frame");
        let [a, b, c, kind, flags, ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        stream.read_exact(&mut payload).await.expect("a whole frame");
        if kind == DATA {
            body.extend(payload);
        }
        if matches!(kind, DATA | HEADERS) && flags & 1 == 1 {
            return body;
        }
    }
}

/// RFC 9113, section 4.1.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a short frame").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}
