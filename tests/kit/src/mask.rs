//! What two right pages may differ in, by PostgreSQL's own `rm_mask` functions (access/common/bufmask.c, `heap_mask`,
//! `btree_mask`, `hash_mask`, `gin_mask`, `gist_mask`, `seq_mask`, `spg_mask`, `brin_mask`), and comparing whole data
//! directories with it. The access method is told from the page's special space, as `pg_filedump` does.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

const PAGE: usize = 8192;
const HEADER: usize = 24;

fn get16(page: &[u8], at: usize) -> usize {
    usize::from(u16::from_le_bytes([page[at], page[at + 1]]))
}

fn and16(page: &mut [u8], at: usize, mask: u16) {
    let value = u16::from_le_bytes([page[at], page[at + 1]]) & mask;
    page[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

/// What kind of page it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum PageKind {
    Heap,
    Btree,
    Hash,
    Gin,
    Gist,
    SpGist,
    Brin,
    Sequence,
}

fn kind_of(page: &[u8]) -> PageKind {
    let special = get16(page, 16);
    let tail = get16(page, PAGE - 2);
    match PAGE.saturating_sub(special) {
        16 if tail == 0xFF80 => PageKind::Hash,
        16 if tail == 0xFF81 => PageKind::Gist,
        16 => PageKind::Btree,
        8 if tail == 0xFF82 => PageKind::SpGist,
        8 if (0xF091..=0xF093).contains(&tail) => PageKind::Brin,
        8 if page[special..special + 8] == [0x17, 0x17, 0, 0, 0, 0, 0, 0] => PageKind::Sequence,
        8 => PageKind::Gin,
        _ => PageKind::Heap,
    }
}

/// Whether the header's offsets make sense; other pages are compared as they are.
fn is_regular(page: &[u8]) -> bool {
    let (lower, upper, special) = (get16(page, 12), get16(page, 14), get16(page, 16));
    HEADER <= lower && lower <= upper && upper <= special && special <= PAGE
}

fn clear_unused_space(page: &mut [u8]) {
    let (lower, upper) = (get16(page, 12), get16(page, 14));
    page[lower..upper].fill(0);
}

/// `mask_page_content`: everything but the header, and the header's `pd_lower` and `pd_upper`.
fn clear_content(page: &mut [u8]) {
    page[12..16].fill(0);
    page[HEADER..].fill(0);
}

fn clear_line_pointer_flags(page: &mut [u8]) {
    for at in (HEADER..get16(page, 12)).step_by(4) {
        let pointer = u32::from_le_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]]);
        page[at..at + 4].copy_from_slice(&(pointer & !(3 << 15)).to_le_bytes());
    }
}

fn mask_heap_tuples(page: &mut [u8]) {
    for at in (HEADER..get16(page, 12)).step_by(4) {
        let pointer = u32::from_le_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]]);
        let (offset, flags, length) =
            ((pointer & 0x7FFF) as usize, (pointer >> 15) & 3, (pointer >> 17) as usize);
        if length == 0 || offset + length.next_multiple_of(8) > PAGE {
            continue;
        }
        page[offset + length..offset + length.next_multiple_of(8)].fill(0);
        if flags != 1 || length < 23 {
            continue;
        }
        let infomask = get16(page, offset + 20);
        let frozen = infomask & 0x0300 == 0x0300;
        and16(page, offset + 20, if frozen { !0x0C00 } else { !0xFFF0 });
        page[offset + 8..offset + 12].fill(0);
        if get16(page, offset + 16) == 0xFFFE {
            page[offset + 12..offset + 18].fill(0);
        }
    }
}

/// Clears what two right copies of a page may differ in. A page that is all zeros stays so.
pub fn mask(page: &mut [u8]) {
    page[0..10].fill(0);
    if !is_regular(page) {
        return;
    }
    let kind = kind_of(page);
    let special = get16(page, 16);
    if kind != PageKind::Sequence {
        page[20..24].fill(0);
        and16(page, 10, !0x0007);
    }
    match kind {
        PageKind::Heap => {
            clear_unused_space(page);
            mask_heap_tuples(page);
        }
        PageKind::Btree => {
            clear_unused_space(page);
            if page[special + 12] & 1 != 0 {
                clear_line_pointer_flags(page);
            }
            and16(page, special + 12, !0x0040);
            page[special + 14..special + 16].fill(0);
        }
        PageKind::Hash => {
            clear_unused_space(page);
            match get16(page, special + 12) & 0x000F {
                0 => clear_content(page),
                1 | 2 => clear_line_pointer_flags(page),
                _ => {}
            }
            and16(page, special + 12, !0x0080);
        }
        PageKind::Gin if page[special + 6] & 0x04 != 0 => clear_content(page),
        PageKind::Gin if get16(page, 12) > HEADER => clear_unused_space(page),
        PageKind::Gin => {}
        PageKind::Gist => {
            clear_unused_space(page);
            page[special..special + 8].fill(0);
            let leaf = page[special + 12] & 1 != 0;
            and16(page, special + 12, !0x000C);
            if leaf {
                clear_line_pointer_flags(page);
            }
        }
        PageKind::Brin => {
            and16(page, PAGE - 4, !1);
            if get16(page, 12) > HEADER {
                clear_unused_space(page);
            }
        }
        // The meta page's list of last used pages (behind the magic number) is a cache that WAL never tells
        // (`SpGistUpdateMetaPage`, spgutils.c).
        PageKind::SpGist if page[special] & 1 != 0 => page[HEADER + 4..special].fill(0),
        PageKind::SpGist | PageKind::Sequence => clear_unused_space(page),
    }
}

/// Whether a page was added by extending a heap by several blocks at once (`RelationAddExtraBlocks`, hio.c):
/// initialised, empty and never logged. Whether a copy of the cluster has it depends on when it was taken.
fn is_unlogged_extension(page: &[u8]) -> bool {
    page[..8] == [0; 8] && get16(page, 12) == HEADER && get16(page, 14) == PAGE && get16(page, 16) == PAGE
}

/// The first offset where two pages differ after masking, if they do.
pub fn first_difference(ours: &[u8], theirs: &[u8]) -> Option<usize> {
    if ours == theirs {
        return None;
    }
    let (mut ours, mut theirs) = (ours.to_vec(), theirs.to_vec());
    for page in [&mut ours, &mut theirs] {
        if is_unlogged_extension(page) {
            page.fill(0);
        }
    }
    mask(&mut ours);
    mask(&mut theirs);
    ours.iter().zip(&theirs).position(|(a, b)| a != b)
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
        for (block, start) in (0..length).step_by(PAGE).enumerate() {
            let zeros = [0; PAGE];
            let page = |bytes: &[u8]| bytes.get(start..start + PAGE).unwrap_or(&zeros).to_vec();
            let (ours, theirs) = (page(a), page(b));
            compared.pages += 1;
            if let Some(at) = first_difference(&ours, &theirs) {
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
