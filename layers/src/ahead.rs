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
pub(crate) type Pieces = Arc<dyn ByteCache<PieceKey, Bytes, LayerError>>;

/// Room for so many bytes of pieces.
pub(crate) fn pieces(bytes: u64) -> Pieces {
    Arc::new(MokaCache::recent("pieces of layers", bytes))
}

/// How one timeline's layers are read.
pub(crate) struct Ahead {
    pieces: Pieces,
    /// Length of a piece.
    piece: u64,
    /// How far each layer is read.
    streams: Mutex<HashMap<Uuid, Stream>>,
}

impl std::fmt::Debug for Ahead {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ahead").field("piece", &self.piece).finish_non_exhaustive()
    }
}

/// How far one layer is read, in pieces.
#[derive(Clone, Copy, Debug)]
struct Stream {
    /// The last one that was asked for, in order.
    asked: u64,
    /// The last one whose fetch was begun.
    begun: u64,
}

impl Stream {
    /// Some pieces are asked for. Where they go on from the ones before, but for `DEPTH` at most that are left out: the last
    /// one that was begun before; now those up to `end` are. `lag`: how far behind somebody may be who reads the same in the
    /// same order.
    fn goes_on(&mut self, first: u64, last: u64, end: u64, lag: u64) -> Option<u64> {
        if last <= self.asked && self.asked - last <= lag {
            return None;
        }
        let goes_on = last > self.asked && first <= self.asked.saturating_add(1 + DEPTH);
        self.asked = last;
        if !goes_on {
            return None;
        }
        let begun = Some(self.begun).filter(|begun| (last..=end).contains(begun)).unwrap_or(last);
        self.begun = end;
        Some(begun)
    }
}

impl Ahead {
    /// For so many layers that share the room. `None` where that would be too little for each.
    pub(crate) fn new(pieces: &Pieces, room: u64, layers: usize) -> Option<Arc<Ahead>> {
        let piece = piece_bytes(room, layers)?;
        Some(Arc::new(Ahead { pieces: Arc::clone(pieces), piece, streams: Mutex::default() }))
    }

    /// Some bytes of a layer. Those that nobody holds are fetched with the rest of their pieces, and so are the pieces after
    /// them.
    pub(crate) async fn get(
        self: &Arc<Self>,
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
        self.fetch_next(store, entry, first, last);
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
        let start = number.saturating_mul(self.piece);
        let range = start..start.saturating_add(self.piece).min(entry.bytes);
        let loaded = AtomicBool::new(false);
        let load = async {
            loaded.store(true, Ordering::Relaxed);
            store.get_exactly(entry, range).await
        };
        let key = (entry.id, self.piece, number);
        let piece = self.pieces.get_or_load(key, load.boxed()).await.map_err(Arc::unwrap_or_clone);
        if loaded.load(Ordering::Relaxed) {
            // Pieces are large: what they replace goes now, not with what is tidied some dozens of them later.
            self.pieces.weighted_bytes().await;
        }
        piece
    }

    /// Begins to fetch the pieces after these where a layer is read one piece after the other; those that were begun are not
    /// begun again. Whoever asks for one meanwhile waits for it; an error is forgotten, and met again by whoever asks.
    fn fetch_next(self: &Arc<Self>, store: &Arc<LayerStore>, entry: &Arc<LayerEntry>, first: u64, last: u64) {
        let end = last.saturating_add(DEPTH).min(entry.bytes.saturating_sub(1) / self.piece);
        let begun = {
            let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(stream) = streams.get_mut(&entry.id) else {
                streams.insert(entry.id, Stream { asked: last, begun: last });
                return;
            };
            let Some(begun) = stream.goes_on(first, last, end, LAG_BYTES / self.piece) else { return };
            begun
        };
        for next in begun + 1..=end {
            let (ahead, store, entry) = (Arc::clone(self), Arc::clone(store), Arc::clone(entry));
            tokio::spawn(async move { drop(ahead.piece(&store, &entry, next).await) });
        }
    }
}

/// How long pieces are where so many layers share the room; `None` where that would be too little for each.
fn piece_bytes(room: u64, layers: usize) -> Option<u64> {
    let each = room / (layers.max(1) as u64).saturating_mul(PIECES_PER_LAYER);
    Some(each.min(PIECE_BYTES_MAX)).filter(|piece| *piece >= PIECE_BYTES_MIN)
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
    fn only_what_is_read_in_order_is_read_ahead_and_each_piece_once() {
        let mut stream = Stream { asked: 0, begun: 0 };
        let mut ask = |first, last| stream.goes_on(first, last, last + DEPTH, 32);
        assert_eq!(ask(0, 0), None, "the same again");
        assert_eq!(ask(1, 1), Some(1), "2 and 3 are begun");
        assert_eq!(ask(2, 2), Some(3), "4 is begun");
        assert_eq!(ask(0, 1), None, "somebody lags behind");
        assert_eq!(ask(2, 4), Some(4), "several pieces at once: 5 and 6 are begun");
        assert_eq!(ask(6, 6), Some(6), "one is left out: 7 and 8 are begun");
        assert_eq!(ask(90, 90), None, "a jump");
        assert_eq!(ask(91, 91), Some(91));
        assert_eq!(ask(3, 3), None, "a jump back");
        assert_eq!(ask(4, 4), Some(4));
    }

    #[test]
    fn pieces_shrink_with_the_number_of_layers_until_reading_ahead_makes_no_sense() {
        let piece = |layers| piece_bytes(64 << 20, layers);
        assert_eq!(piece(1), Some(1 << 20));
        assert_eq!(piece(16), Some(1 << 20));
        assert_eq!(piece(64), Some(256 << 10));
        assert_eq!(piece(512), Some(32 << 10));
        assert_eq!(piece(513), None);
        assert!(piece_bytes(0, 1).is_none());
    }
}
