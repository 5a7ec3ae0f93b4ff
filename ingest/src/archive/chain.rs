//! Looking a WAL file up in a timeline and, for what it does not have, in its ancestors (PROTOCOLS.md §4).

use super::{ArchiveError, WalArchive};
use bytes::Bytes;
use std::collections::BTreeSet;
use zenith_pgformat::wal_name::{WalFile, WalSegSize};
use zenith_pgformat::{Lsn, Tli};

/// Where a child left its parent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BranchPoint {
    /// Everything up to this LSN is the parent's.
    pub lsn: Lsn,
    /// PostgreSQL's timeline number there, in the parent.
    pub tli: Tli,
}

/// An ancestor's archive and how far it may answer for the child.
#[derive(Clone, Debug)]
struct Link {
    archive: WalArchive,
    branch: BranchPoint,
    /// The branch point's TLI and its ancestors: the child's own history.
    tlis: BTreeSet<Tli>,
}

/// The archives of a timeline and of its ancestors.
#[derive(Clone, Debug)]
pub struct ArchiveChain {
    own: WalArchive,
    ancestors: Vec<Link>,
}

impl ArchiveChain {
    /// The archive `own`, then its ancestors, nearest first, each with the point where its child left it. Reads the
    /// history files of the branch points' TLIs.
    pub async fn new(
        own: WalArchive,
        ancestors: Vec<(WalArchive, BranchPoint)>,
    ) -> Result<ArchiveChain, ArchiveError> {
        let mut links: Vec<Link> = Vec::with_capacity(ancestors.len());
        // From the root down, so that a history file is looked up where it may lie: in the ancestor or above it.
        for (archive, branch) in ancestors.into_iter().rev() {
            let tlis = history_of(&archive, &links, branch.tli).await?;
            links.insert(0, Link { archive, branch, tlis });
        }
        // For the child every test uses the lowest branch point on the way.
        let mut lowest = Lsn::MAX;
        for link in &mut links {
            lowest = lowest.min(link.branch.lsn);
            link.branch.lsn = lowest;
        }
        Ok(ArchiveChain { own, ancestors: links })
    }

    /// A timeline without ancestors.
    pub fn alone(own: WalArchive) -> ArchiveChain {
        ArchiveChain { own, ancestors: Vec::new() }
    }

    /// The timeline's own archive.
    pub fn own(&self) -> &WalArchive {
        &self.own
    }

    /// The file's content, from the timeline itself or from the nearest ancestor that may answer and has it.
    pub async fn find(&self, file: WalFile) -> Result<Option<Bytes>, ArchiveError> {
        if let Some(content) = self.own.get(file).await? {
            return Ok(Some(content));
        }
        for link in self.ancestors.iter().filter(|link| link.answers_for(file)) {
            if let Some(content) = link.archive.get(file).await? {
                return Ok(Some(content));
            }
        }
        Ok(None)
    }
}

impl Link {
    fn answers_for(&self, file: WalFile) -> bool {
        let size: WalSegSize = self.archive.segment_size();
        let before = |segment: u64| size.start_of(segment) < self.branch.lsn;
        match file {
            WalFile::Segment { tli, segment } | WalFile::Backup { tli, segment, .. } => {
                self.tlis.contains(&tli) && before(segment)
            }
            // Stock recovery asks by number for histories it does not know: it must not be led into the
            // parent's future.
            WalFile::History { tli } => self.tlis.contains(&tli) && tli <= self.branch.tli,
            WalFile::Partial { .. } => false,
        }
    }
}

/// `tli` and its ancestors, by its history file in `archive` or in the links above it.
async fn history_of(archive: &WalArchive, above: &[Link], tli: Tli) -> Result<BTreeSet<Tli>, ArchiveError> {
    let mut history = archive.history(tli).await?;
    for link in above.iter().filter(|link| link.answers_for(WalFile::History { tli })) {
        if history.is_none() {
            history = link.archive.history(tli).await?;
        }
    }
    let mut tlis: BTreeSet<Tli> = history
        .map(|history| history.ancestors().iter().map(|entry| entry.tli).collect())
        .unwrap_or_default();
    tlis.insert(tli);
    Ok(tlis)
}
