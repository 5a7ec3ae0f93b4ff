//! Reading ahead: whoever reads nearly all of a timeline's layers in the order of their keys, as a restore does, fetches them
//! in few large pieces, the next ones while the last ones are worked on.

use crate::cache::{ByteCache, MokaCache, Weighed};
use crate::error::LayerError;
use crate::reader::LayerStore;
use bytes::{Bytes, BytesMut};
use futures::FutureExt;
use futures::future::try_join_all;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use uuid::Uuid;
use zenith_manifest::LayerEntry;

/// The largest piece: its transfer takes about as long as a request's answer does to begin.
const PIECE_BYTES_MAX: u64 = 1 << 20;
/// Smaller ones are not worth reading what nobody asked for.
const PIECE_BYTES_MIN: u64 = 32 << 10;
/// Pieces of a layer that are fetched before they are asked for.
const DEPTH: u64 = 2;
/// Pieces of each layer that there is room for: the ones ahead, and two that batches of pages are being read from.
const PIECES_PER_LAYER: u64 = DEPTH + 2;
/// How far apart those may be who read a layer in the order of its keys.
const LAG_BYTES: u64 = 32 << 20;

/// A layer, the length of its pieces, and which of them: whoever opened the layer among more of them has smaller pieces.
type PieceKey = (Uuid, u64, u64);

impl Weighed for Bytes {
    fn weight(&self) -> usize {
        self.len()
    }
}

/// The pieces that all timelines of a process hold.
pub(crate) struct Pieces(Box<dyn ByteCache<PieceKey, Bytes, LayerError>>);

impl Pieces {
    /// Room for so many bytes; `None` for none.
    pub(crate) fn new(bytes: u64) -> Option<Pieces> {
        (bytes > 0).then(|| Pieces(Box::new(MokaCache::recent("pieces of layers", bytes))))
    }
}

/// How one timeline's layers are read.
#[derive(Debug)]
pub(crate) struct Ahead {
    piece: u64,
    /// The last piece of each layer that was fetched before it was asked for.
    fetched: Mutex<HashMap<Uuid, u64>>,
}

impl Ahead {
    /// For so many layers that share the room. `None` where that would be too little for each.
    pub(crate) fn new(room: u64, layers: usize) -> Option<Ahead> {
        let each = room / (layers.max(1) as u64).saturating_mul(PIECES_PER_LAYER);
        let piece = each.min(PIECE_BYTES_MAX);
        (piece >= PIECE_BYTES_MIN).then(|| Ahead { piece, fetched: Mutex::default() })
    }

    /// Some bytes of a layer. Those that nobody holds are fetched with the rest of their pieces, and so are the pieces after
    /// them.
    pub(crate) async fn get(
        &self,
        store: &Arc<LayerStore>,
        entry: &Arc<LayerEntry>,
        range: Range<u64>,
    ) -> Result<Bytes, LayerError> {
        let Some(last) = range.end.checked_sub(1).filter(|_| range.start < range.end) else {
            return Ok(Bytes::new());
        };
        if range.end > entry.bytes {
            // The store says what is wrong with it.
            return store.get_exactly(entry, range).await;
        }
        let (first, last) = (range.start / self.piece, last / self.piece);
        self.fetch_next(store, entry, last);
        let pieces = (first..=last).map(|number| self.piece(store, entry, number));
        let pieces = try_join_all(pieces).await?;
        let start = first * self.piece;
        let asked = (range.start - start) as usize..(range.end - start) as usize;
        let bytes = match <[Bytes; 1]>::try_from(pieces) {
            Ok([piece]) => (asked.end <= piece.len()).then(|| piece.slice(asked)),
            Err(pieces) => joined(&pieces, asked),
        };
        bytes.ok_or_else(|| LayerError::damaged(&store.path(entry), "it is shorter than the manifest says"))
    }

    async fn piece(
        &self,
        store: &Arc<LayerStore>,
        entry: &Arc<LayerEntry>,
        number: u64,
    ) -> Result<Bytes, LayerError> {
        let Some(pieces) = store.pieces() else { return Ok(Bytes::new()) };
        let start = number.saturating_mul(self.piece);
        let range = start..start.saturating_add(self.piece).min(entry.bytes);
        let loaded = AtomicBool::new(false);
        let load = async {
            loaded.store(true, Ordering::Relaxed);
            store.get_exactly(entry, range).await
        };
        let key = (entry.id, self.piece, number);
        let piece = pieces.0.get_or_load(key, load.boxed()).await.map_err(Arc::unwrap_or_clone);
        if loaded.load(Ordering::Relaxed) {
            // Pieces are large: what they replace goes now, not with what is tidied some dozens of them later.
            pieces.0.weighted_bytes().await;
        }
        piece
    }

    /// Begins to fetch the pieces after this one, but for those that were. Whoever asks for one meanwhile waits for it; an error
    /// is forgotten, and met again by whoever asks.
    fn fetch_next(&self, store: &Arc<LayerStore>, entry: &Arc<LayerEntry>, number: u64) {
        let end = number.saturating_add(DEPTH).min(entry.bytes.saturating_sub(1) / self.piece);
        let begun = {
            let mut fetched = self.fetched.lock().unwrap_or_else(PoisonError::into_inner);
            let before = fetched.get(&entry.id).copied();
            match before {
                // Readers are some pieces apart: one that lags behind fetches nothing again.
                Some(before) if (end..=end.saturating_add(LAG_BYTES / self.piece)).contains(&before) => {
                    return;
                }
                before => {
                    fetched.insert(entry.id, end);
                    before.filter(|before| (number..end).contains(before)).unwrap_or(number)
                }
            }
        };
        for next in begun + 1..=end {
            let (store, entry) = (Arc::clone(store), Arc::clone(entry));
            tokio::spawn(async move {
                if let Some(ahead) = store.ahead() {
                    drop(ahead.piece(&store, &entry, next).await);
                }
            });
        }
    }
}

/// A part of what several pieces hold together.
fn joined(pieces: &[Bytes], part: Range<usize>) -> Option<Bytes> {
    let mut joined = BytesMut::with_capacity(part.len());
    let mut start = 0usize;
    for piece in pieces {
        let end = start.checked_add(piece.len())?;
        let (from, to) = (part.start.max(start), part.end.min(end));
        if from < to {
            joined.extend_from_slice(piece.get(from - start..to - start)?);
        }
        start = end;
    }
    (joined.len() == part.len()).then(|| joined.freeze())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_several_pieces_is_what_it_would_be_of_the_whole() {
        let whole: Vec<u8> = (0..40).collect();
        let pieces: Vec<Bytes> = whole.chunks(16).map(Bytes::copy_from_slice).collect();
        for start in 0..=40 {
            for end in start..=40 {
                assert_eq!(joined(&pieces, start..end).unwrap(), whole[start..end]);
            }
        }
        assert_eq!(joined(&pieces, 30..41), None);
    }

    #[test]
    fn pieces_shrink_with_the_number_of_layers_until_reading_ahead_makes_no_sense() {
        let piece = |layers| Ahead::new(64 << 20, layers).map(|ahead| ahead.piece);
        assert_eq!(piece(1), Some(1 << 20));
        assert_eq!(piece(16), Some(1 << 20));
        assert_eq!(piece(64), Some(256 << 10));
        assert_eq!(piece(512), Some(32 << 10));
        assert_eq!(piece(513), None);
        assert!(Ahead::new(0, 1).is_none());
    }
}
