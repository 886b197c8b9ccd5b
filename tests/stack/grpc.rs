//! An ext_proc client in the place of Envoy.

use std::ops::Range;

use envoy_types::pb::envoy::service::ext_proc::v3::external_processor_client::ExternalProcessorClient;
use futures_util::{StreamExt, stream};
use tonic::transport::{Channel, Endpoint};

use super::in_process::document_of;

const AT_ONCE: usize = 50;

pub async fn channel(address: &str) -> Channel {
    Endpoint::from_shared(format!("http://{address}")).expect("an address").connect().await.expect("a connection")
}

/// Has the documents of as many routes made, some at once, each on a stream of its own.
pub async fn fetch_documents(channel: &Channel, routes: Range<usize>) {
    let calls = stream::iter(routes).map(|route| {
        let mut client = ExternalProcessorClient::new(channel.clone());
        async move {
            let message = document_of(&format!("https://route-{route}.example"));
            let mut answers = client.process(tokio_stream::once(message)).await.expect("a stream").into_inner();
            answers.message().await.expect("an answer").expect("a message");
            assert!(answers.message().await.expect("the end").is_none());
        }
    });
    calls.buffer_unordered(AT_ONCE).collect::<()>().await;
}
