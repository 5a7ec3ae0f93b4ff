//! Memory of segments that is used again: fresh memory for 16 MB costs the kernel as much as half of unpacking them.

use bytes::Bytes;
use std::sync::{Arc, Mutex, PoisonError};

/// Memory that lies unused is kept up to so many bytes: three segments of the usual size, none of a large one.
const KEPT_BYTES: usize = 48 << 20;

/// See the module. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Buffers {
    free: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Buffers {
    /// An empty buffer.
    pub(super) fn take(&self) -> Vec<u8> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    /// A buffer's content; its memory comes back once nobody holds a part of it.
    pub(super) fn share(&self, content: Vec<u8>) -> Bytes {
        Bytes::from_owner(Shared { content, buffers: self.clone() })
    }

    fn give_back(&self, mut buffer: Vec<u8>) {
        buffer.clear();
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let kept: usize = free.iter().map(Vec::capacity).sum();
        if kept.saturating_add(buffer.capacity()) <= KEPT_BYTES {
            free.push(buffer);
        }
    }
}

/// The owner of shared content.
struct Shared {
    content: Vec<u8>,
    buffers: Buffers,
}

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.content
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.buffers.give_back(std::mem::take(&mut self.content));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_comes_back_when_its_last_part_is_dropped_and_never_before() {
        let buffers = Buffers::default();
        let content = buffers.share(vec![7; 1 << 20]);
        let part = content.slice(100..200);
        let address = content.as_ptr();
        drop(content);
        assert_eq!(buffers.take().capacity(), 0, "a part of it is held");
        assert_eq!(part, vec![7; 100]);
        drop(part);
        let again = buffers.take();
        assert_eq!((again.as_ptr(), again.len()), (address, 0));
    }

    #[test]
    fn no_more_than_a_few_segments_are_kept() {
        let buffers = Buffers::default();
        let held: Vec<Bytes> = (0..5).map(|_| buffers.share(Vec::with_capacity(16 << 20))).collect();
        drop(held);
        drop(buffers.share(Vec::with_capacity(KEPT_BYTES + 1)));
        assert_eq!(buffers.free.lock().unwrap().len(), 3);
    }
}
