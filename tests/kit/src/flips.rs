//! A store that is only read, that remembers which bytes were asked for, and that shows one bit of one byte flipped.

use bytes::Bytes;
use futures::StreamExt;
use object_store::path::Path;
use object_store::{
    Error, GetOptions, GetRange, GetResult, GetResultPayload, ObjectStore, PutOptions, PutPayload, PutResult,
    Result,
};
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

/// A bit of an object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Flip {
    /// The object.
    pub object: Path,
    /// The byte, from its start.
    pub byte: u64,
    /// The bit in it, 0 to 7.
    pub bit: u8,
}

/// Bytes of an object that were read.
pub type Read = (Path, Range<u64>);

/// See the module. The store inside keeps its bytes: what is flipped is only what a reader gets.
pub struct FlippingStore {
    inner: Arc<dyn ObjectStore>,
    flip: Option<Flip>,
    read: Arc<Mutex<Vec<Read>>>,
}

impl FlippingStore {
    /// The objects of `inner`, all of them right with `None`.
    pub fn new(inner: Arc<dyn ObjectStore>, flip: Option<Flip>) -> FlippingStore {
        FlippingStore { inner, flip, read: Arc::default() }
    }

    /// What is read through it from now on; shared with the store.
    pub fn reads(&self) -> Reads {
        Reads(Arc::clone(&self.read))
    }

    fn not_written(&self) -> Error {
        Error::NotImplemented { operation: "write".to_owned(), implementer: self.to_string() }
    }
}

/// What was read through a [`FlippingStore`].
#[derive(Clone, Debug)]
pub struct Reads(Arc<Mutex<Vec<Read>>>);

impl Reads {
    /// What was read since the last time that it was asked.
    pub fn take(&self) -> Vec<Read> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl fmt::Debug for FlippingStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} with {:?}", self.inner, self.flip)
    }
}

impl fmt::Display for FlippingStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} with a flipped bit", self.inner)
    }
}

zenith_store::forward_object_store! {
    impl ObjectStore for FlippingStore by inner {
        forward put_multipart_opts, delete_stream, list, list_with_offset, list_with_delimiter, copy_opts, rename_opts;

        async fn put_opts(&self, _: &Path, _: PutPayload, _: PutOptions) -> Result<PutResult> {
            Err(self.not_written())
        }

        async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
            let head = options.head;
            let answer = self.inner.get_opts(location, options).await?;
            if head {
                return Ok(answer);
            }
            let range = answer.range.clone();
            self.read.lock().unwrap_or_else(PoisonError::into_inner).push((location.clone(), range.clone()));
            match &self.flip {
                Some(flip) if flip.object == *location && range.contains(&flip.byte) => {
                    flipped(answer, (flip.byte - range.start) as usize, flip.bit).await
                }
                _ => Ok(answer),
            }
        }

        async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
            let mut parts = Vec::with_capacity(ranges.len());
            for range in ranges {
                let range = Some(GetRange::Bounded(range.clone()));
                let answer = self.get_opts(location, GetOptions { range, ..GetOptions::default() }).await?;
                parts.push(answer.bytes().await?);
            }
            Ok(parts)
        }
    }
}

/// The same answer with one bit of its body another one.
async fn flipped(answer: GetResult, at: usize, bit: u8) -> Result<GetResult> {
    let (meta, range) = (answer.meta.clone(), answer.range.clone());
    let (attributes, extensions) = (answer.attributes.clone(), answer.extensions.clone());
    let mut bytes = answer.bytes().await?.to_vec();
    bytes[at] ^= 1 << bit;
    let payload = GetResultPayload::Stream(futures::stream::iter([Ok(Bytes::from(bytes))]).boxed());
    Ok(GetResult { payload, meta, range, attributes, extensions })
}

#[cfg(test)]
mod tests {
    use super::*;
    use object_store::ObjectStoreExt;
    use zenith_store::{Store, get, get_range};

    #[tokio::test]
    async fn one_bit_of_one_byte_is_another_one_whichever_way_it_is_read_and_nothing_is_written() {
        let (store, object, other) = (Store::memory(), Path::from("a/object"), Path::from("a/other"));
        for path in [&object, &other] {
            store.objects.put(path, Bytes::from_static(b"0123456789").into()).await.unwrap();
        }
        let flip = Flip { object: object.clone(), byte: 4, bit: 1 };
        let flipping = FlippingStore::new(Arc::clone(&store.objects), Some(flip));
        let reads = flipping.reads();
        assert_eq!(get(&flipping, &object, 10).await.unwrap(), "0123656789");
        assert_eq!(get(&flipping, &other, 10).await.unwrap(), "0123456789");
        assert_eq!(get_range(&flipping, &object, 4..6).await.unwrap(), "65");
        assert_eq!(get_range(&flipping, &object, 5..6).await.unwrap(), "5");
        assert_eq!(
            reads.take(),
            [(object.clone(), 0..10), (other, 0..10), (object.clone(), 4..6), (object.clone(), 5..6)]
        );
        let parts = flipping.get_ranges(&object, &[3..5, 0..1]).await.unwrap();
        assert_eq!(parts, ["36", "0"]);
        assert_eq!(reads.take().len(), 2);
        assert!(flipping.put(&object, Bytes::from_static(b"x").into()).await.is_err());
        assert_eq!(get(&*store.objects, &object, 10).await.unwrap(), "0123456789");
    }
}
