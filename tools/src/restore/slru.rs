//! The commit log, multixacts and commit timestamps.

use super::layout::{Target, explain};
use super::source::{Facts, Source};
use anyhow::{Result, bail};
use std::io::Write;
use zenith_layers::Slru;
use zenith_pgformat::slru::{PAGES_PER_SEGMENT, clog, multixact, page_in_segment, segment_name, segment_of};
use zenith_pgformat::{BLCKSZ, Xid};

/// The SLRUs that this server will use. Commit timestamps that are not tracked are removed by the first start.
pub(crate) fn wanted(facts: &Facts) -> impl Iterator<Item = Slru> {
    let commit_ts = facts.parameters.track_commit_timestamp;
    Slru::ALL.into_iter().filter(move |slru| *slru != Slru::CommitTs || commit_ts)
}

/// Writes one SLRU, segment by segment. Returns the bytes written.
pub(crate) async fn write(source: &dyn Source, target: &Target, facts: &Facts, slru: Slru) -> Result<u64> {
    let segments = source.slru_segments(slru).await?;
    check_pages(facts, slru, &segments)?;
    let mut written = 0;
    for (segment, pages) in segments {
        let name = format!("{}/{}", slru.directory(), segment_name(segment));
        let bytes = source.slru_segment(slru, segment).await?;
        if bytes.len() as u64 != u64::from(pages) * BLCKSZ as u64 {
            bail!("{name} has {pages} pages at {}, but {} bytes were read", facts.lsn, bytes.len());
        }
        let mut file = target.create(&name, target.file_mode())?;
        file.write_all(&bytes).map_err(|error| explain(error, &target.path(&name)))?;
        target.complete(file, &name)?;
        written += bytes.len() as u64;
    }
    Ok(written)
}

/// The pages that a start reads must be there: without them the server would not start, or would start with
/// transactions that are forgotten (`TrimCLOG`, clog.c; `TrimMultiXact`, multixact.c).
fn check_pages(facts: &Facts, slru: Slru, segments: &[(u32, u32)]) -> Result<()> {
    for (page, why) in needed_pages(facts, slru) {
        let (segment, in_segment) = (segment_of(page), page_in_segment(page));
        let there = segments.iter().any(|(number, pages)| *number == segment && in_segment < *pages);
        if !there {
            bail!(
                "{}/{} has no page {in_segment} at {}, which {why} needs: the store's state is damaged",
                slru.directory(),
                segment_name(segment),
                facts.lsn
            );
        }
    }
    if let Some((segment, pages)) = segments.iter().find(|(_, pages)| *pages > PAGES_PER_SEGMENT) {
        bail!("{}/{} has {pages} pages: at most 32 fit", slru.directory(), segment_name(*segment));
    }
    Ok(())
}

/// Absolute page numbers, and what needs them. The first entry of a page needs none: the server makes that page.
fn needed_pages(facts: &Facts, slru: Slru) -> Vec<(u32, String)> {
    let counters = &facts.checkpoint;
    let next_xid = facts.next_xid as Xid;
    match slru {
        Slru::Xact => {
            let mut pages = Vec::new();
            let oldest = clog::page_of(counters.oldest_xid);
            // A server may never have had the page of the one that its base image names: redo of a truncation does not
            // advance it (`clog_redo`, clog.c), so that it lags behind after a crash, and `pg_resetwal` may have guessed
            // it. No start reads that page. Where the WAL has advanced it, the page is there.
            if oldest != clog::page_of(facts.control.checkpoint_copy.oldest_xid) {
                pages.push((oldest, format!("transaction {}", counters.oldest_xid)));
            }
            if !next_xid.is_multiple_of(clog::XACTS_PER_PAGE) {
                pages.push((clog::page_of(next_xid), format!("the next transaction id {next_xid}")));
            }
            pages
        }
        Slru::MultiXactOffsets if !counters.next_multi.is_multiple_of(multixact::OFFSETS_PER_PAGE) => {
            let next = counters.next_multi;
            vec![(multixact::offset_page(next), format!("the next multixact {next}"))]
        }
        Slru::MultiXactMembers if multixact::member_flag_position(counters.next_multi_offset) > 0 => {
            let next = counters.next_multi_offset;
            vec![(multixact::member_page(next), format!("the next multixact offset {next}"))]
        }
        Slru::MultiXactOffsets | Slru::MultiXactMembers | Slru::CommitTs => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::facts;
    use super::*;

    #[test]
    fn a_commit_log_without_the_current_page_is_refused_by_name() {
        let mut facts = facts();
        facts.next_xid = 0x1_0001_0001;
        let error = check_pages(&facts, Slru::Xact, &[(0, 2)]).expect_err("page 2 is missing");
        assert!(error.to_string().contains("pg_xact/0000 has no page 2"), "{error}");
        assert!(check_pages(&facts, Slru::Xact, &[(0, 3)]).is_ok());
    }

    #[test]
    fn a_page_that_the_next_transaction_would_begin_need_not_exist() {
        let mut facts = facts();
        facts.next_xid = 0x1_0000;
        assert!(check_pages(&facts, Slru::Xact, &[(0, 2)]).is_ok());
    }

    #[test]
    fn the_oldest_transaction_must_be_there_too_unless_the_base_image_names_it() {
        let mut facts = facts();
        facts.checkpoint.oldest_xid = 40_000;
        facts.next_xid = 0x20_0001;
        assert!(check_pages(&facts, Slru::Xact, &[(2, 1)]).is_err());
        assert!(check_pages(&facts, Slru::Xact, &[(0, 32), (1, 32), (2, 1)]).is_ok());
        facts.control.checkpoint_copy.oldest_xid = 40_100;
        assert!(check_pages(&facts, Slru::Xact, &[(2, 1)]).is_ok(), "on the same page");
        facts.control.checkpoint_copy.oldest_xid = 30_000;
        assert!(check_pages(&facts, Slru::Xact, &[(2, 1)]).is_err());
    }

    #[test]
    fn multixact_pages_in_use_must_exist() {
        let mut facts = facts();
        facts.checkpoint.next_multi = 5000;
        facts.checkpoint.next_multi_offset = 1637;
        assert!(check_pages(&facts, Slru::MultiXactOffsets, &[(0, 2)]).is_err());
        assert!(check_pages(&facts, Slru::MultiXactOffsets, &[(0, 3)]).is_ok());
        assert!(check_pages(&facts, Slru::MultiXactMembers, &[(0, 1)]).is_err());
        facts.checkpoint.next_multi_offset = 1636;
        assert!(check_pages(&facts, Slru::MultiXactMembers, &[(0, 1)]).is_ok());
    }

    #[test]
    fn commit_timestamps_are_written_only_when_they_are_tracked() {
        let mut facts = facts();
        assert!(!wanted(&facts).any(|slru| slru == Slru::CommitTs));
        facts.parameters.track_commit_timestamp = true;
        assert!(wanted(&facts).any(|slru| slru == Slru::CommitTs));
    }
}
