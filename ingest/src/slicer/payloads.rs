//! Memory for the payloads of rows that wait: a few large pieces instead of one allocation for each of them.

use bytes::{Bytes, BytesMut};

/// Size of a piece.
const PIECE_BYTES: usize = 1 << 20;

/// See the module. A piece is freed when the last payload in it is.
#[derive(Debug, Default)]
pub(super) struct Payloads {
    piece: BytesMut,
}

impl Payloads {
    /// A copy of a payload.
    pub(super) fn keep(&mut self, payload: &[u8]) -> Bytes {
        if payload.len() >= PIECE_BYTES {
            return Bytes::copy_from_slice(payload);
        }
        if self.piece.capacity() < payload.len() {
            self.piece = BytesMut::with_capacity(PIECE_BYTES);
        }
        self.piece.extend_from_slice(payload);
        self.piece.split().freeze()
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
    fn small_payloads_lie_one_behind_the_other() {
        let mut payloads = Payloads::default();
        let [first, second] = [payloads.keep(b"first"), payloads.keep(b"second")];
        assert_eq!(first.as_ptr().wrapping_add(5), second.as_ptr());
    }
}
