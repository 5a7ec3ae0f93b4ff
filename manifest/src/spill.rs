//! Moves layers from the root into index pages, so that a commit costs what changed and not what exists: pages of
//! similar size are merged eight at a time, which keeps their number small and rewrites an entry seldom.

use crate::check::RECENT_MAX;
use crate::entry::LayerEntry;
use crate::error::{CommitError, ManifestError};
use crate::index::{PAGE_ENTRIES_MAX, encode_page};
use crate::root::{IndexPageRef, Root};
use crate::store::ManifestStore;
use std::sync::Arc;
use uuid::Uuid;
use zenith_store::{Creation, StoreError, create};

/// This many pages of one size become one.
const MERGE: usize = 8;

/// A page written for a commit that then met a conflict: used again if the layers are still the same.
#[derive(Default)]
pub(crate) struct Spilled {
    pages: Vec<(Vec<Uuid>, IndexPageRef)>,
}

impl ManifestStore {
    /// If `root` names too many layers itself, moves them into index pages and stores those.
    pub(crate) async fn spill(&self, root: &mut Root, spilled: &mut Spilled) -> Result<(), CommitError> {
        if root.recent.len() <= RECENT_MAX {
            return Ok(());
        }
        let recent = std::mem::take(&mut root.recent);
        for entries in recent.chunks(PAGE_ENTRIES_MAX) {
            root.pages.push(self.store_page(entries, spilled).await?);
        }
        while let Some(first) = mergeable(&root.pages) {
            let mut entries = Vec::new();
            for page in root.pages.split_off(first) {
                entries.extend(self.page(&page).await?.iter().cloned());
            }
            root.pages.push(self.store_page(&entries, spilled).await?);
        }
        Ok(())
    }

    async fn store_page(
        &self,
        entries: &[LayerEntry],
        spilled: &mut Spilled,
    ) -> Result<IndexPageRef, CommitError> {
        let ids: Vec<Uuid> = entries.iter().map(|entry| entry.id).collect();
        if let Some((_, page)) = spilled.pages.iter().find(|(same, _)| *same == ids) {
            return Ok(page.clone());
        }
        let id = self.env.ids.fresh();
        let path = self.paths.index_page(id);
        let (page, bytes) = encode_page(id, entries)
            .map_err(|reason| ManifestError::Damaged { object: path.to_string(), reason })?;
        if let Creation::Other = create(&*self.objects, &self.env, &path, bytes).await? {
            let reason = "a fresh id was taken".to_owned();
            return Err(StoreError::Corrupt { object: path.to_string(), reason }.into());
        }
        self.keep_page(id, &Arc::new(entries.to_vec()));
        spilled.pages.push((ids, page.clone()));
        Ok(page)
    }
}

/// How many times [`MERGE`] pages of the smallest size went into one of this size.
fn level(page: &IndexPageRef) -> u32 {
    let smallest = page.entries / RECENT_MAX as u64;
    smallest.checked_ilog(MERGE as u64).unwrap_or(0)
}

/// The first of the newest pages that together make one of the next size.
fn mergeable(pages: &[IndexPageRef]) -> Option<usize> {
    let first = pages.len().checked_sub(MERGE)?;
    let newest = pages.get(first..)?;
    let same = newest.iter().map(level).max() == newest.iter().map(level).min();
    let entries: u64 = newest.iter().map(|page| page.entries).sum();
    (same && entries <= PAGE_ENTRIES_MAX as u64).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(entries: u64) -> IndexPageRef {
        IndexPageRef { id: Uuid::nil(), entries, bytes: 0, crc: 0 }
    }

    #[test]
    fn pages_of_one_size_are_merged_and_the_number_of_pages_stays_small() {
        let mut pages: Vec<IndexPageRef> = Vec::new();
        let mut rewritten = 0;
        for _ in 0..4000 {
            pages.push(page(RECENT_MAX as u64 + 1));
            while let Some(first) = mergeable(&pages) {
                let entries = pages.split_off(first).iter().map(|page| page.entries).sum();
                rewritten += entries;
                pages.push(page(entries));
            }
        }
        let entries: u64 = pages.iter().map(|page| page.entries).sum();
        assert_eq!(entries, 4000 * (RECENT_MAX as u64 + 1));
        assert!(pages.len() <= 40, "{}", pages.len());
        assert!(rewritten <= 3 * entries, "{rewritten} of {entries}");
        assert!(pages.iter().all(|page| page.entries <= PAGE_ENTRIES_MAX as u64));
    }
}
