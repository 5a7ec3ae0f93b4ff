//! SLRU segments (`pg_xact` and its like): pages without header, LSN or checksum, changed by images and edits alone.

use crate::error::ReadError;
use crate::locate::{Begins, Line, Part};
use crate::snapshot::{Snapshot, bad, decoded, live};
use bytes::{Bytes, BytesMut};
use std::collections::BTreeMap;
use zenith_ingest::model::SlruSize;
use zenith_layers::{Key, KeyRange, Row, Slru, Span, Value};
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
        let layers = self.inner.timeline.values();
        let (lsn, ranges) = (self.inner.lsn, [pages]);
        let sizes = [KeyRange::one(Key::slru_size(slru, segment))];
        let (starts, sizes) = futures::try_join!(
            layers.starts(&ranges, lsn, self.mode(lsn)),
            layers.versions(&sizes, self.inner.used.lsn, lsn)
        )?;
        let first = first_row_of(&sizes);
        let starts: BTreeMap<u32, Lsn> = starts.into_iter().map(|(key, start)| (key.block, start)).collect();
        let line = |page| {
            let key = Key::slru_page(slru, segment, page);
            let start = starts.get(&page).copied().filter(|start| *start >= first);
            let begins = if start.is_some() { Begins::Row } else { Begins::Zeros };
            let span = Span { key, from: start.unwrap_or(first), upto: lsn };
            Line { key, begins, parts: vec![Part { depth: 0, upto: lsn, span }] }
        };
        let lines: Vec<Line> = (from..=last).map(line).collect();
        let built = self.replay(layers, &lines, &mut |_| {}).await?;
        built.into_iter().map(|build| build.into_bytes(lsn)).collect()
    }
}

/// From where on rows belong to the segment: it was removed just before, and older pages are those of an earlier segment of
/// the same number.
fn first_row_of(sizes: &[Row]) -> Lsn {
    let removed = sizes.iter().rev().find(|row| row.value == Value::Tombstone);
    removed.map_or(Lsn::INVALID, |row| Lsn(row.lsn.0.saturating_add(1)))
}
