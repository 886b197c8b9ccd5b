//! How messages get into and out of memory, for streams that have one of each.

use bytes::{BufMut, Bytes};
use envoy_types::pb::envoy::service::ext_proc::v3::{ProcessingRequest, ProcessingResponse};
use prost::{DecodeError, EncodeError, Message};
use tonic::{
    Status,
    codec::{BufferSettings, EncodeBuf, Encoder},
};
use tonic_prost::{ProstCodec, ProstDecoder};

/// What a stream's buffers have from the start, in bytes: most messages fit. tonic's own 8 KiB are more than an
/// allocator has at hand, and each stream would ask for them twice.
const BUFFER: usize = 1024;

/// What is said to Envoy. It is not for logs: a token may be in it.
pub enum Answer {
    Made(Box<ProcessingResponse>),
    /// One that was said before, as it was encoded then.
    Again(Bytes),
}

impl Answer {
    /// Puts it on the wire, in a buffer that grows.
    ///
    /// # Errors
    /// Where it cannot grow any more.
    pub fn encode(self, buffer: &mut impl BufMut) -> Result<(), EncodeError> {
        match self {
            Self::Made(response) => response.encode(buffer),
            Self::Again(encoded) => {
                buffer.put_slice(&encoded);
                Ok(())
            }
        }
    }

    /// As it was before it was encoded.
    ///
    /// # Errors
    /// Where what was encoded is something else.
    pub fn decoded(self) -> Result<ProcessingResponse, DecodeError> {
        match self {
            Self::Made(response) => Ok(*response),
            Self::Again(encoded) => ProcessingResponse::decode(encoded),
        }
    }
}

impl From<ProcessingResponse> for Answer {
    fn from(response: ProcessingResponse) -> Self {
        Self::Made(Box::new(response))
    }
}

/// Protocol Buffers, with buffers of our size, and answers that need not be encoded each time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Codec;

/// An answer goes out as soon as there is one: none follows soon.
fn settings() -> BufferSettings {
    BufferSettings::new(BUFFER, 0)
}

impl tonic::codec::Codec for Codec {
    type Encode = Answer;
    type Decode = ProcessingRequest;
    type Encoder = Self;
    type Decoder = ProstDecoder<ProcessingRequest>;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<ProcessingResponse, ProcessingRequest>::raw_decoder(settings())
    }
}

impl Encoder for Codec {
    type Item = Answer;
    type Error = Status;

    fn encode(&mut self, answer: Answer, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        answer.encode(buffer).map_err(|error| Status::internal(error.to_string()))
    }

    fn buffer_settings(&self) -> BufferSettings {
        settings()
    }
}
