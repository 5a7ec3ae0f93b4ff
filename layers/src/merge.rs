//! From rows found in many layers to the history of each key: pure.

use crate::error::LayerError;
use crate::index::Found;
use crate::row::kind_starts_history;
use std::cmp::Reverse;

/// A row found in one of the layers of a search.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidate {
    pub(crate) found: Found,
    /// Position among the layers of the search.
    pub(crate) layer: u32,
    pub(crate) group: u32,
    /// Of an image layer: at the LSN of an image, the image counts and not the change that it contains.
    pub(crate) image: bool,
}

/// Sorts by key, newest first.
pub(crate) fn sort_newest_first(candidates: &mut [Candidate]) {
    candidates.sort_unstable_by_key(|row| (row.found.key, Reverse(row.found.lsn), !row.image));
}

/// Of rows that are sorted newest first, keeps for every key those down to the first that starts a history.
/// `name` tells the object of a layer.
pub(crate) fn cut_histories(
    candidates: &mut Vec<Candidate>,
    name: impl Fn(u32) -> String,
) -> Result<(), LayerError> {
    no_overlap(candidates, name)?;
    let mut started = None;
    candidates.retain(|row| {
        let keep = started != Some(row.found.key);
        if keep && kind_starts_history(row.found.kind) {
            started = Some(row.found.key);
        }
        keep
    });
    Ok(())
}

/// Refuses two values of one key at one LSN (rows sorted by key and LSN), unless one of them is an image that contains
/// the other.
pub(crate) fn no_overlap(candidates: &[Candidate], name: impl Fn(u32) -> String) -> Result<(), LayerError> {
    for pair in candidates.windows(2) {
        if let [a, b] = pair
            && (a.found.key, a.found.lsn) == (b.found.key, b.found.lsn)
            && a.image == b.image
        {
            return Err(LayerError::Overlap {
                first: name(a.layer),
                second: name(b.layer),
                key: a.found.key.to_string(),
                lsn: a.found.lsn,
            });
        }
    }
    Ok(())
}
