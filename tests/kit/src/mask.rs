//! Comparing pages, and whole data directories, under PostgreSQL's masks ([`zenith_pgformat::mask`]). The access method is
//! told from the page's special space, as `pg_filedump` does.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
pub use zenith_pgformat::mask::{PageKind, mask};
use zenith_pgformat::page::PageHeader;
use zenith_pgformat::rel::RelFile;
use zenith_pgformat::{BLCKSZ as PAGE, Page};

const HEADER: usize = 24;

/// Whether a page was added by extending a heap by several blocks at once (`RelationAddExtraBlocks`, hio.c):
/// initialised, empty and never logged. Whether a copy of the cluster has it depends on when it was taken.
fn is_unlogged_extension(page: &Page) -> bool {
    let PageHeader { lsn, lower, upper, special, .. } = PageHeader::decode(page);
    lsn.0 == 0 && [lower, upper, special].map(usize::from) == [HEADER, PAGE, PAGE]
}

/// The first offset where two copies of block `block` differ after masking, if they do.
pub fn first_difference(ours: &[u8], theirs: &[u8], block: u32) -> Option<usize> {
    let copy = |bytes: &[u8]| {
        let page: &Page = bytes.try_into().expect("a page");
        Box::new(if is_unlogged_extension(page) { [0; PAGE] } else { *page })
    };
    let (mut ours, mut theirs) = (copy(ours), copy(theirs));
    for page in [&mut ours, &mut theirs] {
        let kind = PageKind::guess(page);
        mask(page, kind, block);
    }
    ours.iter().zip(theirs.iter()).position(|(a, b)| a != b)
}

/// What a comparison looked at.
#[derive(Clone, Copy, Default, Debug)]
pub struct Compared {
    /// Relation files.
    pub files: usize,
    /// Pages.
    pub pages: usize,
}

/// Relation files below a data directory by relative path: main, visibility map and init forks.
/// Free-space maps are hints and temporary relations nobody's.
fn relation_files(data: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut directories = vec!["global".to_owned()];
    for entry in std::fs::read_dir(data.join("base")).expect("data directory").flatten() {
        directories.push(format!("base/{}", entry.file_name().to_string_lossy()));
    }
    for tablespace in std::fs::read_dir(data.join("pg_tblspc")).into_iter().flatten().flatten() {
        let name = format!("pg_tblspc/{}", tablespace.file_name().to_string_lossy());
        for version in std::fs::read_dir(data.join(&name)).into_iter().flatten().flatten() {
            let below = format!("{name}/{}", version.file_name().to_string_lossy());
            for database in std::fs::read_dir(data.join(&below)).into_iter().flatten().flatten() {
                directories.push(format!("{below}/{}", database.file_name().to_string_lossy()));
            }
        }
    }
    for directory in directories {
        for entry in std::fs::read_dir(data.join(&directory)).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let is_relation = name.starts_with(|c: char| c.is_ascii_digit()) && !name.contains("_fsm");
            if is_relation && entry.path().is_file() {
                files.insert(
                    format!("{directory}/{name}"),
                    std::fs::read(entry.path()).expect("relation file"),
                );
            }
        }
    }
    files
}

/// Compares every page of every relation of two data directories; at most 50 differences, as text.
pub fn compare_directories(ours: &Path, theirs: &Path) -> Result<Compared, Vec<String>> {
    let (ours, theirs) = (relation_files(ours), relation_files(theirs));
    let names: BTreeSet<&String> = ours.keys().chain(theirs.keys()).collect();
    let (mut compared, mut differences) = (Compared::default(), Vec::new());
    for name in names {
        let empty = Vec::new();
        let (a, b) = (ours.get(name).unwrap_or(&empty), theirs.get(name).unwrap_or(&empty));
        compared.files += 1;
        let length = a.len().max(b.len());
        let first = RelFile::parse(name).map_or(0, |file| file.first_block());
        for (block, start) in (first..).zip((0..length).step_by(PAGE)) {
            let zeros = [0; PAGE];
            let page = |bytes: &[u8]| bytes.get(start..start + PAGE).unwrap_or(&zeros).to_vec();
            let (ours, theirs) = (page(a), page(b));
            compared.pages += 1;
            if let Some(at) = first_difference(&ours, &theirs, block) {
                let (header, other) = (&ours[..HEADER], &theirs[..HEADER]);
                let lengths = format!("lengths {} and {}", a.len(), b.len());
                differences.push(format!(
                    "{name} block {block}: byte {at} differs ({lengths}, headers {header:02X?} and {other:02X?})"
                ));
            }
        }
        if differences.len() >= 50 {
            break;
        }
    }
    if differences.is_empty() { Ok(compared) } else { Err(differences) }
}
