//! A directory whose relations are sparse files of their true length, filled when they are touched (docs/lazy-computes.md).

use super::config::LazyNeeds;
use super::layout::{Target, explain};
use super::source::{Facts, ForkSize};
use anyhow::Result;
use zenith_compute_dir::limits::{self, Slot};
use zenith_compute_dir::{COMPUTE, Compute, FOLDER, GUARD, GUARD_TEXT, LIMITS, NO_COPIES, PIN, Reader};
use zenith_pgformat::rel::RelFile;
use zenith_pgformat::{BLCKSZ, RELSEG_SIZE};
use zenith_store::TimelineId;

/// How the pages get to the directory later.
#[derive(Clone, Debug)]
pub struct Lazy {
    /// The extension's library, an absolute path.
    pub library: String,
    /// The server that the directory is for.
    pub server_version_num: u32,
    /// Whose pages they are: the timeline in whose own history the LSN lies.
    pub timeline: TimelineId,
    /// Who serves them.
    pub reader: Reader,
    /// The pin that keeps the LSN.
    pub pin: Option<uuid::Uuid>,
}

impl Lazy {
    pub(super) fn needs(&self, facts: &Facts) -> LazyNeeds {
        LazyNeeds { library: self.library.clone(), checksums: facts.control.has_checksums() }
    }

    /// Writes the sparse files, and what the extension has to know. The guard is the first: with pg_control, which is the last,
    /// a server could start.
    pub(super) fn write(&self, target: &Target, facts: &Facts, forks: &[ForkSize]) -> Result<()> {
        target.write(GUARD, GUARD_TEXT.as_bytes())?;
        target.write_with_mode(NO_COPIES, b"", 0)?;
        target.make_directory(FOLDER)?;
        forks.iter().try_for_each(|fork| write_sparse(target, fork))?;
        let slots = forks.iter().map(|fork| Slot { node: fork.node, fork: fork.fork, blocks: fork.blocks });
        target.write(LIMITS, &limits::encode(slots))?;
        if let Some(pin) = self.pin {
            target.write(PIN, format!("{}\n", pin.simple()).as_bytes())?;
        }
        let compute = Compute::new(
            self.timeline.to_string(),
            facts.lsn,
            facts.control.system_identifier,
            self.server_version_num,
            self.reader.clone(),
        );
        target.write(COMPUTE, &compute.encode())
    }
}

/// The fork's segment files, in their lengths and without contents.
fn write_sparse(target: &Target, fork: &ForkSize) -> Result<()> {
    for first in (0..fork.blocks.max(1)).step_by(RELSEG_SIZE as usize) {
        let path = RelFile { node: fork.node, fork: fork.fork, segment: first / RELSEG_SIZE }.path();
        let file = target.create(&path, target.file_mode())?;
        let blocks = (fork.blocks - first).min(RELSEG_SIZE);
        file.set_len(u64::from(blocks) * BLCKSZ as u64)
            .map_err(|error| explain(error, &target.path(&path)))?;
        target.complete(file, &path)?;
    }
    Ok(())
}
