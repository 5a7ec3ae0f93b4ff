//! Which cluster a WAL file comes from, for the push that makes the timeline.

use anyhow::{Context, bail};
use std::io::Read;
use std::path::{Path, PathBuf};
use zenith_manifest::Identity;
use zenith_pgformat::BLCKSZ;
use zenith_pgformat::control::ControlFile;
use zenith_pgformat::wal::page::PageHeader;
use zenith_pgformat::wal_name::WalSegSize;
use zenith_store::TimelineId;

/// Longer control files do not exist.
const CONTROL_MAX: u64 = 64 * 1024;

/// What a cluster is known by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Origin {
    /// `system_identifier` of pg_control.
    pub system_identifier: u64,
    /// Size of its WAL segments.
    pub segment_size: WalSegSize,
}

impl Origin {
    /// By the long header of a segment's first page.
    pub fn of_segment(name: &str, content: &[u8]) -> anyhow::Result<Origin> {
        let header = PageHeader::decode(content).with_context(|| format!("{name} was not archived"))?;
        let Some(long) = header.long else {
            bail!("{name} was not archived: its first page has no long header, so it is no WAL segment");
        };
        let Some(segment_size) = WalSegSize::new(u64::from(long.seg_size)) else {
            bail!("{name} was not archived: it says that WAL segments have {} bytes", long.seg_size);
        };
        Ok(Origin { system_identifier: long.system_identifier, segment_size })
    }

    /// By the data directory around a file that has no header: its `global/pg_control`, found from the file's own
    /// place or from the current directory, which is the data directory for `archive_command`.
    pub fn of_neighbourhood(path: &Path) -> anyhow::Result<Origin> {
        let beside = path.parent().and_then(Path::parent).map(|data| data.join("global/pg_control"));
        let candidates: Vec<PathBuf> =
            beside.into_iter().chain([PathBuf::from("global/pg_control")]).collect();
        for candidate in &candidates {
            let mut bytes = Vec::new();
            let read = std::fs::File::open(candidate)
                .and_then(|file| file.take(CONTROL_MAX).read_to_end(&mut bytes));
            if read.is_ok() {
                let control = ControlFile::decode(&bytes).with_context(|| candidate.display().to_string())?;
                return Ok(Origin {
                    system_identifier: control.system_identifier,
                    segment_size: control.wal_segment_size,
                });
            }
        }
        bail!(
            "{} is the first file for this cluster and does not say which cluster it comes from, and there is no \
             global/pg_control beside it: archive a WAL segment first, or take a base image with zenith_push base",
            path.display()
        )
    }

    /// A timeline for this cluster, without ancestors.
    pub fn identity(&self, timeline: TimelineId) -> Identity {
        Identity {
            format: Identity::FORMAT,
            timeline,
            system_identifier: self.system_identifier,
            pg_major: 15,
            wal_segment_size: u32::try_from(self.segment_size.bytes()).unwrap_or(u32::MAX),
            block_size: BLCKSZ as u32,
            ancestor: None,
            encryption: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zenith_pgformat::Lsn;
    use zenith_pgformat::wal::page::LongHeader;

    #[test]
    fn a_segment_says_which_cluster_it_is_of() {
        let header = PageHeader {
            info: 0,
            tli: 1,
            page_addr: Lsn(0),
            rem_len: 0,
            long: Some(LongHeader { system_identifier: 7, seg_size: 1 << 24, xlog_blcksz: 8192 }),
        };
        let origin = Origin::of_segment("x", &header.encode()).expect("valid");
        assert_eq!(origin, Origin { system_identifier: 7, segment_size: WalSegSize::DEFAULT });
        let short = PageHeader { long: None, ..header };
        assert!(Origin::of_segment("x", &short.encode()).is_err());
        assert!(Origin::of_segment("x", b"").is_err());
    }

    #[test]
    fn a_file_that_says_nothing_is_refused_where_no_data_directory_is_around_it() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("pg_wal/00000002.history");
        let error = Origin::of_neighbourhood(&path).expect_err("unknown").to_string();
        assert!(error.contains("00000002.history") && error.contains("zenith_push base"), "{error}");
    }
}
