//! Which tuples of a heap a new transaction would see at an LSN, by the commit log and the multixacts there.

use crate::error::ReadError;
use crate::snapshot::{Snapshot, bad};
use bytes::Bytes;
use std::collections::BTreeMap;
use zenith_layers::{Key, Slru};
use zenith_pgformat::Xid;
use zenith_pgformat::heap::{Cause, Tuple};
use zenith_pgformat::slru::clog::{self, XactStatus};
use zenith_pgformat::slru::{multixact, page_in_segment, segment_of};

/// Pages of SLRUs that are kept.
const PAGES: usize = 64;
/// Transactions that share a row of a catalog; more are taken for damage.
const MEMBERS_MAX: u32 = 1 << 16;

/// What has not committed at the LSN has not happened. Holds 512 KB at most.
pub(crate) struct Visibility {
    snapshot: Snapshot,
    pages: BTreeMap<(Slru, u32), Bytes>,
}

impl Visibility {
    pub(crate) fn at(snapshot: &Snapshot) -> Visibility {
        Visibility { snapshot: snapshot.clone(), pages: BTreeMap::new() }
    }

    /// Whether it was made, and not deleted.
    pub(crate) async fn is_seen(&mut self, tuple: &Tuple<'_>) -> Result<bool, ReadError> {
        Ok(self.happened(tuple.made).await? && !self.happened(tuple.deleted).await?)
    }

    async fn happened(&mut self, cause: Cause) -> Result<bool, ReadError> {
        match cause {
            Cause::Done => Ok(true),
            Cause::NotDone => Ok(false),
            Cause::Xid(xid) => self.committed(xid).await,
            Cause::Multi(multi) => match self.updater(multi).await? {
                Some(xid) => self.committed(xid).await,
                None => Ok(false),
            },
        }
    }

    async fn committed(&mut self, xid: Xid) -> Result<bool, ReadError> {
        let page = self.page(Slru::Xact, clog::page_of(xid)).await?;
        Ok(clog::status(&page, xid) == Some(XactStatus::Committed))
    }

    /// The member of a multixact that updated.
    async fn updater(&mut self, multi: u32) -> Result<Option<Xid>, ReadError> {
        let first = self.offset_of(multi).await?;
        let end = self.end_of(multi).await?;
        let count = end.wrapping_sub(first);
        if count > MEMBERS_MAX {
            let key = slru_key(Slru::MultiXactOffsets, multixact::offset_page(multi));
            return Err(bad(key, self.snapshot.lsn(), format!("multixact {multi} has {count} members")));
        }
        for at in (0..count).map(|member| first.wrapping_add(member)) {
            let page = self.page(Slru::MultiXactMembers, multixact::member_page(at)).await?;
            if let Some(xid) = multixact::updater(&page, at) {
                return Ok(Some(xid));
            }
        }
        Ok(None)
    }

    /// Where its members end: where the next one's begin, or will.
    async fn end_of(&mut self, multi: u32) -> Result<u32, ReadError> {
        let next = self.snapshot.checkpoint().await?;
        match multixact::next_multi(multi) {
            following if following == next.next_multi => Ok(next.next_multi_offset),
            following => self.offset_of(following).await,
        }
    }

    async fn offset_of(&mut self, multi: u32) -> Result<u32, ReadError> {
        let page = multixact::offset_page(multi);
        let bytes = self.page(Slru::MultiXactOffsets, page).await?;
        multixact::offset(&bytes, multi).ok_or_else(|| {
            bad(slru_key(Slru::MultiXactOffsets, page), self.snapshot.lsn(), "a page of another length")
        })
    }

    async fn page(&mut self, slru: Slru, page: u32) -> Result<Bytes, ReadError> {
        if let Some(bytes) = self.pages.get(&(slru, page)) {
            return Ok(bytes.clone());
        }
        let bytes = self.snapshot.slru_page(slru, segment_of(page), page_in_segment(page)).await?;
        if self.pages.len() >= PAGES {
            self.pages.clear();
        }
        self.pages.insert((slru, page), bytes.clone());
        Ok(bytes)
    }
}

fn slru_key(slru: Slru, page: u32) -> Key {
    Key::slru_page(slru, segment_of(page), page_in_segment(page))
}
