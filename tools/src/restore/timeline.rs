//! The history files of the new timeline and of its ancestors.

use super::layout::Target;
use super::source::{Facts, Source};
use anyhow::{Context, Result, bail};
use bytes::Bytes;
use zenith_pgformat::Tli;
use zenith_pgformat::history::{History, child_file};

/// History files, ready to be written.
#[derive(Debug)]
pub(crate) struct Timelines {
    /// The new timeline's.
    own: (Tli, Vec<u8>),
    /// Its ancestors': a standby asks for all of them, one after the other.
    ancestors: Vec<(Tli, Bytes)>,
}

impl Timelines {
    /// Reads the ancestors' history files and adds the new timeline's.
    pub(crate) async fn read(
        source: &dyn Source,
        facts: &Facts,
        tli: Tli,
        reason: &str,
    ) -> Result<Timelines> {
        if tli <= facts.tli {
            bail!("a new timeline must be above its parent, {}: {tli} is not", facts.tli);
        }
        let parent_file = source.history_file(facts.tli).await?;
        let parent_file = match (parent_file, facts.tli) {
            (Some(file), _) => file,
            (None, 1) => Bytes::new(),
            (None, parent) => {
                bail!("{parent:08X}.history is not in the store: archive it from the parent's pg_wal")
            }
        };
        let parent = History::parse(facts.tli, &parent_file)
            .with_context(|| format!("{:08X}.history in the store", facts.tli))?;
        if parent.branch(tli, facts.lsn).is_none() {
            bail!("{} is before timeline {} begins, at {}", facts.lsn, facts.tli, parent.begin());
        }
        let mut ancestors = Vec::new();
        for entry in parent.ancestors().iter().filter(|entry| entry.tli > 1) {
            if let Some(file) = source.history_file(entry.tli).await? {
                ancestors.push((entry.tli, file));
            }
        }
        let own = child_file(&parent_file, facts.tli, facts.lsn, reason);
        if facts.tli > 1 {
            ancestors.push((facts.tli, parent_file));
        }
        Ok(Timelines { own: (tli, own), ancestors })
    }

    /// Writes them. The new one is marked as ready to be archived, because PostgreSQL archives no history file
    /// without a mark; its ancestors' are marked as archived, which they are.
    pub(crate) fn write(&self, target: &Target) -> Result<()> {
        let (tli, own) = &self.own;
        target.write(&format!("pg_wal/{tli:08X}.history"), own)?;
        target.write(&format!("pg_wal/archive_status/{tli:08X}.history.ready"), b"")?;
        for (tli, file) in &self.ancestors {
            target.write(&format!("pg_wal/{tli:08X}.history"), file)?;
            target.write(&format!("pg_wal/archive_status/{tli:08X}.history.done"), b"")?;
        }
        Ok(())
    }
}
