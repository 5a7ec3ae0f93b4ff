//! Which cluster a WAL file comes from.

use anyhow::{Context, bail};
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use zenith_manifest::Identity;
use zenith_pgformat::BLCKSZ;
use zenith_pgformat::control::ControlFile;
use zenith_pgformat::wal::page::PageHeader;
use zenith_pgformat::wal_name::WalSegSize;
use zenith_store::TimelineId;

/// Longer control files do not exist.
const CONTROL_MAX: u64 = 64 * 1024;
/// A write of it takes microseconds.
const CONTROL_TRIES: u32 = 10;

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

/// A data directory around a file that does not say itself which cluster it is of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Neighbour {
    /// The control file that says it.
    pub control: PathBuf,
    /// What it says.
    pub origin: Origin,
}

impl Neighbour {
    /// The data directory that the file's own directory (pg_wal) lies in, else the current directory, which is the data
    /// directory for `archive_command`. `None` where neither is one.
    pub fn of(path: &Path) -> anyhow::Result<Option<Neighbour>> {
        let absolute = std::path::absolute(path).with_context(|| path.display().to_string())?;
        let beside = absolute.parent().and_then(Path::parent).map(|data| data.join("global/pg_control"));
        for control in beside.into_iter().chain([PathBuf::from("global/pg_control")]) {
            if let Some(file) = read_control(&control)? {
                let origin =
                    Origin { system_identifier: file.system_identifier, segment_size: file.wal_segment_size };
                return Ok(Some(Neighbour { control, origin }));
            }
        }
        Ok(None)
    }
}

/// `None` where there is no such file. The server writes it in place: what is read meanwhile may be torn, and is read
/// again.
fn read_control(path: &Path) -> anyhow::Result<Option<ControlFile>> {
    let mut tries = 0;
    loop {
        tries += 1;
        let mut bytes = Vec::new();
        let read = File::open(path).and_then(|file| file.take(CONTROL_MAX).read_to_end(&mut bytes));
        match read {
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
            Ok(_) => match ControlFile::decode(&bytes) {
                Ok(file) => return Ok(Some(file)),
                Err(_) if tries < CONTROL_TRIES => {}
                Err(error) => return Err(error).with_context(|| path.display().to_string()),
            },
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
    fn a_file_has_a_neighbour_only_where_a_data_directory_is_around_it() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("pg_wal/00000002.history");
        assert_eq!(Neighbour::of(&path).expect("looked"), None);
        // One that is there and says nothing is no licence.
        std::fs::create_dir(folder.path().join("global")).expect("made");
        std::fs::write(folder.path().join("global/pg_control"), [7; 8192]).expect("written");
        let error = Neighbour::of(&path).expect_err("damaged").to_string();
        assert!(error.contains("global/pg_control"), "{error}");
    }
}
