//! SLRU segments (`pg_xact` and its like): pages without header, LSN or checksum, changed by images and edits alone.

use crate::assemble::{Absent, Build, HintLogging};
use crate::error::ReadError;
use crate::snapshot::{Snapshot, bad, decoded, live};
use bytes::{Bytes, BytesMut};
use std::collections::BTreeMap;
use zenith_ingest::model::SlruSize;
use zenith_layers::{Key, KeyRange, Row, Slru, Value};
use zenith_pgformat::{BLCKSZ, Lsn};

impl Snapshot {
    /// The segments of an SLRU that exist, with their lengths in pages.
    pub async fn slru_segments(&self, slru: Slru) -> Result<Vec<(u32, u32)>, ReadError> {
        let range = KeyRange { first: Key::slru_size(slru, 0), last: Key::slru_size(slru, u32::MAX) };
        let rows = self.history_of(&[range], self.inner.lsn).await?;
        live(&rows)?
            .map(|(key, lsn, bytes)| Ok((key.db, decoded(key, lsn, SlruSize::decode(bytes))?.pages)))
            .collect()
    }

    /// A whole segment file.
    pub async fn slru_segment(&self, slru: Slru, segment: u32) -> Result<Bytes, ReadError> {
        let pages = self.slru_size(slru, segment).await?;
        let Some(last) = pages.checked_sub(1) else { return Ok(Bytes::new()) };
        let built = self.slru_pages(slru, segment, 0, last).await?;
        let mut bytes = BytesMut::with_capacity(built.len() * BLCKSZ);
        built.iter().for_each(|page| bytes.extend_from_slice(page));
        Ok(bytes.freeze())
    }

    /// One page, 8192 bytes.
    pub async fn slru_page(&self, slru: Slru, segment: u32, page: u32) -> Result<Bytes, ReadError> {
        let pages = self.slru_size(slru, segment).await?;
        let missing = ReadError::NoSuchKey { key: Key::slru_page(slru, segment, page), lsn: self.inner.lsn };
        if page >= pages {
            return Err(missing);
        }
        self.slru_pages(slru, segment, page, page).await?.pop().ok_or(missing)
    }

    async fn slru_size(&self, slru: Slru, segment: u32) -> Result<u32, ReadError> {
        let key = Key::slru_size(slru, segment);
        let missing = ReadError::NoSuchKey { key, lsn: self.inner.lsn };
        let Some(row) = self.newest(key, self.inner.lsn).await? else { return Err(missing) };
        match &row.value {
            Value::State(bytes) => Ok(decoded(key, row.lsn, SlruSize::decode(bytes))?.pages),
            Value::Tombstone => Err(missing),
            _ => Err(bad(key, row.lsn, "no state where one belongs")),
        }
    }

    /// Pages `from..=last` of a segment that has them. One that has no row since the segment was made is zeros.
    async fn slru_pages(
        &self,
        slru: Slru,
        segment: u32,
        from: u32,
        last: u32,
    ) -> Result<Vec<Bytes>, ReadError> {
        let pages = KeyRange {
            first: Key::slru_page(slru, segment, from),
            last: Key::slru_page(slru, segment, last),
        };
        let layers = self.inner.timeline.layers();
        let sizes = [KeyRange::one(Key::slru_size(slru, segment))];
        let (histories, sizes) =
            futures::try_join!(self.history_of(std::slice::from_ref(&pages), self.inner.lsn), async {
                Ok(layers.versions(&sizes, self.inner.used.lsn, self.inner.lsn).await?)
            })?;
        let removed = removed_at(&sizes);
        let mut rows: BTreeMap<u32, Vec<Row>> =
            histories.into_iter().map(|history| (history.key.block, history.rows)).collect();
        (from..=last)
            .map(|page| {
                let key = Key::slru_page(slru, segment, page);
                let mut rows = rows.remove(&page).unwrap_or_default();
                rows.retain(|row| removed.is_none_or(|removed| row.lsn > removed));
                self.slru_build(key, rows)
            })
            .collect()
    }

    fn slru_build(&self, key: Key, rows: Vec<Row>) -> Result<Bytes, ReadError> {
        let hints = HintLogging::new(false, false, Vec::new());
        let mut build = Build::new(key, self.inner.lsn, rows, Absent::Zeros, &hints)?;
        match build.next_request()? {
            None => build.into_bytes(),
            Some(_) => Err(bad(key, self.inner.lsn, "a WAL record where none belongs")),
        }
    }
}

/// When the segment was last removed: older pages belong to an earlier segment of the same number.
fn removed_at(sizes: &[Row]) -> Option<Lsn> {
    sizes.iter().rev().find(|row| row.value == Value::Tombstone).map(|row| row.lsn)
}
