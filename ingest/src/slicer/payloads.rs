//! Memory for the payloads of rows that wait: a few large pieces instead of one allocation for each of them.

use bytes::{Bytes, BytesMut};

/// Size of a piece.
const PIECE_BYTES: usize = 1 << 20;

/// See the module. A piece is freed when the last payload in it is and nobody reclaims it.
#[derive(Debug, Default)]
pub(super) struct Payloads {
    /// The piece that is being filled.
    piece: BytesMut,
    full: Vec<BytesMut>,
    free: Vec<BytesMut>,
}

impl Payloads {
    /// A copy of a payload.
    pub(super) fn keep(&mut self, payload: &[u8]) -> Bytes {
        if payload.len() >= PIECE_BYTES {
            return Bytes::copy_from_slice(payload);
        }
        if self.piece.capacity() < payload.len() {
            let next = self.free.pop().unwrap_or_else(|| BytesMut::with_capacity(PIECE_BYTES));
            self.full.push(std::mem::replace(&mut self.piece, next));
        }
        self.piece.extend_from_slice(payload);
        self.piece.split().freeze()
    }

    /// Takes back the pieces of which no payload is left: memory that the kernel need not make ready again.
    pub(super) fn reclaim(&mut self) {
        for mut piece in self.full.drain(..) {
            if piece.try_reclaim(PIECE_BYTES) {
                self.free.push(piece);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_of_every_length_come_back_as_they_were() {
        let mut payloads = Payloads::default();
        let lengths = [0, 1, 8192, PIECE_BYTES - 8193, 1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 7];
        let given: Vec<Vec<u8>> =
            lengths.iter().zip(1u8..).map(|(length, byte)| vec![byte; *length]).collect();
        let kept: Vec<Bytes> = given.iter().map(|payload| payloads.keep(payload)).collect();
        assert_eq!(kept, given);
    }

    #[test]
    fn memory_is_used_again_once_no_payload_is_left_in_it_and_never_before() {
        let mut payloads = Payloads::default();
        let mut kept: Vec<Bytes> = (0..8).map(|byte| payloads.keep(&[byte; PIECE_BYTES / 2])).collect();
        let first = kept.remove(0);
        drop(kept);
        payloads.reclaim();
        assert_eq!(payloads.free.len(), 2, "one is still read, one is still being filled");
        let more: Vec<Bytes> = (0..8).map(|_| payloads.keep(&[9; PIECE_BYTES / 2])).collect();
        assert_eq!(first, vec![0; PIECE_BYTES / 2]);
        assert!(more.iter().all(|payload| payload == &vec![9; PIECE_BYTES / 2]));
    }

    #[test]
    fn small_payloads_lie_one_behind_the_other() {
        let mut payloads = Payloads::default();
        let [first, second] = [payloads.keep(b"first"), payloads.keep(b"second")];
        assert_eq!(first.as_ptr().wrapping_add(5), second.as_ptr());
    }
}
