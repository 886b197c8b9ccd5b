//! How messages get into and out of memory, for streams that have one of each.

use std::marker::PhantomData;

use prost::Message;
use tonic::codec::BufferSettings;
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

/// What a stream's buffers have from the start, in bytes: most messages fit. tonic's own 8 KiB are more than an
/// allocator has at hand, and each stream would ask for them twice.
const BUFFER: usize = 1024;

/// Protocol Buffers, with buffers of our size.
#[derive(Debug)]
pub struct Codec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for Codec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

/// An answer goes out as soon as there is one: none follows soon.
fn settings() -> BufferSettings {
    BufferSettings::new(BUFFER, 0)
}

impl<T, U> tonic::codec::Codec for Codec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = ProstDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::raw_encoder(settings())
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<T, U>::raw_decoder(settings())
    }
}
