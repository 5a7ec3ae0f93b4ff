//! Records with known pages, which every process must redo rightly before its first request: what makes a minor upgrade
//! of the server safe.

use crate::batch::Job;
use crate::pool::run_alone;
use crate::process::Process;
use crate::request::{Change, PageRequest};
use crate::start::StartError;
use bytes::Bytes;
use std::time::Duration;
use zenith_pgformat::{BLCKSZ, Fork, Lsn, Page, RelNode};

/// The tests, as text: records and pages of a real server. How it is written: `tests/self_test_vectors.rs`.
const VECTORS: &str = include_str!("selftest.txt");

/// One test.
#[derive(Debug, PartialEq, Eq)]
pub struct Vector {
    /// What it tests.
    pub name: String,
    /// The relation.
    pub node: RelNode,
    /// The block of its main fork.
    pub block: u32,
    /// Records that build the page from nothing.
    pub records: Vec<(Lsn, Bytes)>,
    /// The page.
    pub page: Box<Page>,
    /// Bytes of it in which minor releases differ, and in which bits: `F_TUPLES_DELETED` of a GiST page, which redo of 15.18 leaves
    /// set and redo of 15.20 does not.
    pub loose: Vec<(usize, u8)>,
}

impl Vector {
    /// The first byte in which a page is not the known one.
    pub fn difference(&self, page: &Page) -> Option<usize> {
        let loose = |at: usize| {
            self.loose.iter().filter(|(byte, _)| *byte == at).fold(0, |bits, (_, more)| bits | more)
        };
        let mut pairs = page.iter().zip(self.page.iter()).enumerate();
        pairs.find(|(at, (ours, known))| (*ours ^ *known) & !loose(*at) != 0).map(|(at, _)| at)
    }
}

/// Runs all tests in a process, and hands it on if it passed.
pub(crate) fn check(process: Process, timeout: Duration) -> Result<Process, StartError> {
    let wrong = |test: &str, reason: String| StartError::SelfTest { test: test.to_owned(), reason };
    let vectors = vectors().map_err(|reason| wrong("reading the tests", reason))?;
    check_with(process, timeout, vectors)
}

fn check_with(mut process: Process, timeout: Duration, vectors: Vec<Vector>) -> Result<Process, StartError> {
    let wrong = |test: &str, reason: String| StartError::SelfTest { test: test.to_owned(), reason };
    for mut vector in vectors {
        let request = PageRequest {
            node: vector.node,
            fork: Fork::Main,
            block: vector.block,
            base: None,
            changes: std::mem::take(&mut vector.records)
                .into_iter()
                .map(|(end, raw)| Change::record(end, raw))
                .collect(),
            hint_bits_logged: true,
        };
        let job = Job::new(0, request).map_err(|error| wrong(&vector.name, error.to_string()))?;
        let page = run_alone(&mut process, job, timeout).map_err(|reason| wrong(&vector.name, reason))?;
        if let Some(at) = vector.difference(&page) {
            let (ours, known) = (page[at], vector.page[at]);
            return Err(wrong(
                &vector.name,
                format!("byte {at} of the page is {ours:#04x}, and {known:#04x} is known"),
            ));
        }
    }
    Ok(process)
}

/// All tests.
pub fn vectors() -> Result<Vec<Vector>, String> {
    parse(VECTORS)
}

/// Reads tests: `test NAME`, `block SPC/DB/REL BLOCK`, `record LSN HEX` …, `page OFFSET HEX` … for the bytes that are
/// not zero, `loose OFFSET BITS` for those that minor releases differ in.
fn parse(text: &str) -> Result<Vec<Vector>, String> {
    let mut vectors: Vec<Vector> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        parse_line(line, &mut vectors)
            .ok_or_else(|| format!("line {} of the built-in tests is damaged", number + 1))?;
    }
    if vectors.is_empty() || vectors.iter().any(|vector| vector.records.is_empty()) {
        return Err("there are no built-in tests".to_owned());
    }
    Ok(vectors)
}

fn parse_line(line: &str, vectors: &mut Vec<Vector>) -> Option<()> {
    let (word, rest) = line.split_once(' ')?;
    if word == "test" {
        let node = RelNode { spc: 0, db: 0, rel: 0 };
        let (name, page) = (rest.to_owned(), Box::new([0; BLCKSZ]));
        vectors.push(Vector { name, node, block: 0, records: Vec::new(), page, loose: Vec::new() });
        return Some(());
    }
    let vector = vectors.last_mut()?;
    let (first, second) = rest.split_once(' ')?;
    match word {
        "block" => {
            let mut numbers = first.split('/').map(|number| number.parse::<u32>().ok());
            vector.node = RelNode { spc: numbers.next()??, db: numbers.next()??, rel: numbers.next()?? };
            vector.block = second.parse().ok()?;
        }
        "record" => vector.records.push((first.parse().ok()?, Bytes::from(from_hex(second)?))),
        "page" => {
            let (start, bytes) = (first.parse::<usize>().ok()?, from_hex(second)?);
            vector.page.get_mut(start..start.checked_add(bytes.len())?)?.copy_from_slice(&bytes);
        }
        "loose" => {
            let (at, bits) = (first.parse::<usize>().ok()?, from_hex(second)?);
            vector.loose.push((at, *bits.first()?));
        }
        _ => return None,
    }
    Some(())
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    pairs.iter().map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::start::RedoOptions;

    #[test]
    fn the_built_in_tests_cover_heap_and_btree_and_every_page_is_used() {
        let vectors = vectors().unwrap();
        for part in ["heap", "btree"] {
            assert!(vectors.iter().any(|vector| vector.name.contains(part)), "{part}");
        }
        assert!(vectors.iter().all(|vector| vector.page.iter().any(|byte| *byte != 0)));
    }

    #[test]
    fn a_server_that_redoes_otherwise_is_refused_and_the_test_is_named() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .unwrap();
        let options = RedoOptions { work_dir: Some(directory.path().join("work")), ..RedoOptions::default() };
        let recipe = crate::pool::recipe(&options).unwrap();

        let mut altered = vectors().unwrap();
        altered[1].page[100] ^= 1;
        let name = altered[1].name.clone();
        let process = Process::start(&recipe).unwrap();
        match check_with(process, options.timeout, altered).map(|_| ()) {
            Err(StartError::SelfTest { test, reason }) => {
                assert_eq!(test, name);
                assert!(reason.contains("byte 100"), "{reason}");
            }
            other => panic!("{other:?}"),
        }

        let mut unknown = vectors().unwrap();
        unknown[0].records[0].1 = with_info(&unknown[0].records[0].1, 9, 0x80);
        let process = Process::start(&recipe).unwrap();
        let refused = check_with(process, options.timeout, unknown).map(|_| ());
        assert!(matches!(refused, Err(StartError::SelfTest { .. })), "{refused:?}");
    }

    /// The record of another resource manager.
    fn with_info(record: &[u8], rmgr: u8, info: u8) -> Bytes {
        let mut record = record.to_vec();
        (record[16], record[17]) = (info, rmgr);
        Bytes::from(record)
    }

    #[test]
    fn only_the_bits_that_minor_releases_differ_in_may_differ() {
        let vectors = vectors().unwrap();
        let gist = vectors.iter().find(|vector| vector.name.starts_with("gist")).unwrap();
        assert_eq!(gist.difference(&gist.page), None);
        for (byte, bits, differs) in [(8188, 0x04, None), (8188, 0x02, Some(8188)), (100, 0x04, Some(100))] {
            let mut page = gist.page.clone();
            page[byte] ^= bits;
            assert_eq!(gist.difference(&page), differs, "{byte} {bits}");
        }
    }

    #[test]
    fn a_damaged_line_is_named() {
        let text = "test x\nblock 1/2/3 4\nrecord 0/10 zz\n";
        assert_eq!(parse(text), Err("line 3 of the built-in tests is damaged".to_owned()));
        assert!(parse("").is_err());
    }
}
