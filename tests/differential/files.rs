//! What lies beside the relations' pages: which files there are, and the small ones' contents.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use zenith_pgformat::checkpoint::CheckPoint;
use zenith_pgformat::control::ControlFile;
use zenith_pgformat::slru::xid_precedes;
use zenith_pgformat::{BLCKSZ, slru};

/// Directories of which every file must be the same, byte for byte.
const SAME: [&str; 5] =
    ["pg_xact", "pg_multixact/offsets", "pg_multixact/members", "pg_commit_ts", "pg_twophase"];

/// Compares the small files of two stopped servers; what differs, as text.
pub(crate) fn differences(ours: &Path, theirs: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for directory in SAME {
        compare_directory(ours, theirs, directory, &mut found);
    }
    compare_origins(ours, theirs, &mut found);
    compare_databases(ours, theirs, &mut found);
    compare_control(ours, theirs, &mut found);
    found
}

fn names(directory: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn compare_directory(ours: &Path, theirs: &Path, directory: &str, found: &mut Vec<String>) {
    let (a, b) = (names(&ours.join(directory)), names(&theirs.join(directory)));
    for name in a.union(&b) {
        compare_file(ours, theirs, &format!("{directory}/{name}"), found);
    }
}

fn compare_file(ours: &Path, theirs: &Path, name: &str, found: &mut Vec<String>) {
    let read = |root: &Path| std::fs::read(root.join(name)).ok();
    match (read(ours), read(theirs)) {
        (Some(a), Some(b)) if a == b => {}
        (Some(a), Some(b)) => {
            let at = a.iter().zip(&b).position(|(a, b)| a != b).unwrap_or(a.len().min(b.len()));
            found.push(format!("{name}: {} and {} bytes, byte {at} differs", a.len(), b.len()));
        }
        (None, None) => {}
        (ours, _) => {
            found.push(format!("{name} exists only {}", if ours.is_some() { "here" } else { "there" }));
        }
    }
}

/// The progress of replication origins (`CheckPointReplicationOrigin`, origin.c): magic, 16 bytes for each origin in
/// any order, checksum. PostgreSQL writes the file also when there is none.
fn compare_origins(ours: &Path, theirs: &Path, found: &mut Vec<String>) {
    let read = |root: &Path| {
        let bytes =
            std::fs::read(root.join("pg_logical/replorigin_checkpoint")).unwrap_or_else(|_| vec![0; 8]);
        let entries = bytes[4..bytes.len() - 4].chunks(16).map(<[u8]>::to_vec);
        entries.collect::<BTreeSet<_>>()
    };
    let (ours, theirs) = (read(ours), read(theirs));
    if ours != theirs {
        found.push(format!("pg_logical/replorigin_checkpoint: {ours:?} and {theirs:?}"));
    }
}

/// The databases' directories with their relation maps and versions, and which relation files they hold.
fn compare_databases(ours: &Path, theirs: &Path, found: &mut Vec<String>) {
    let (a, b) = (database_directories(ours), database_directories(theirs));
    for name in a.symmetric_difference(&b) {
        found.push(format!(
            "directory {name} exists only {}",
            if a.contains(name) { "here" } else { "there" }
        ));
    }
    for directory in a.intersection(&b) {
        let map = format!("{directory}/pg_filenode.map");
        compare_file(ours, theirs, &map, found);
        // Between the record that makes a database's directory and the next, which makes its relation map, PostgreSQL has
        // a PG_VERSION in it and Zenith not yet: it cannot be told there from the directory of a tablespace that is not
        // the database's own. Nobody can see that database.
        if theirs.join(map).exists() {
            compare_file(ours, theirs, &format!("{directory}/PG_VERSION"), found);
        }
        let (a, b) = (relations(&ours.join(directory)), relations(&theirs.join(directory)));
        for name in a.keys().chain(b.keys()).collect::<BTreeSet<_>>() {
            match (a.get(name), b.get(name)) {
                (Some(_), Some(_)) => {}
                // A visibility map without a bit may not be there.
                (a, b) if name.contains("_vm") && a.or(b) == Some(&0) => {}
                (a, _) => {
                    let whose = if a.is_some() { "here" } else { "there" };
                    found.push(format!("{directory}/{name} exists only {whose}"));
                }
            }
        }
    }
}

fn database_directories(root: &Path) -> BTreeSet<String> {
    let mut all = BTreeSet::from(["global".to_owned()]);
    all.extend(names(&root.join("base")).into_iter().map(|name| format!("base/{name}")));
    for space in names(&root.join("pg_tblspc")) {
        for version in names(&root.join("pg_tblspc").join(&space)) {
            let below = format!("pg_tblspc/{space}/{version}");
            all.extend(names(&root.join(&below)).into_iter().map(|name| format!("{below}/{name}")));
        }
    }
    all
}

/// Relation files and their lengths; free-space maps are hints.
fn relations(directory: &Path) -> BTreeMap<String, u64> {
    let is_relation =
        |name: &String| name.starts_with(|c: char| c.is_ascii_digit()) && !name.contains("_fsm");
    let all = names(directory).into_iter().filter(is_relation);
    all.map(|name| {
        let length = std::fs::metadata(directory.join(&name)).map_or(0, |file| file.len());
        (name, length)
    })
    .collect()
}

/// What pg_control must agree in: everything but the positions, times and states that a restore and a promotion make
/// anew.
fn compare_control(ours: &Path, theirs: &Path, found: &mut Vec<String>) {
    let read = |root: &Path| {
        let bytes = std::fs::read(root.join("global/pg_control")).expect("pg_control");
        ControlFile::decode(&bytes).expect("a control file")
    };
    let (ours, theirs) = (read(ours), read(theirs));
    // Which database has the oldest transaction is the primary's word after a restart point, and that of the first record
    // which said so in one recovery: either is right. Whether pages are logged whole is the word of the server that wrote
    // the checkpoint.
    let counters = |control: &ControlFile| CheckPoint {
        // Redo does not advance it with a truncation of pg_xact, the server that wrote the record did.
        oldest_xid: if xid_precedes(theirs.checkpoint_copy.oldest_xid, control.checkpoint_copy.oldest_xid) {
            theirs.checkpoint_copy.oldest_xid
        } else {
            control.checkpoint_copy.oldest_xid
        },
        oldest_xid_db: 0,
        oldest_multi_db: 0,
        full_page_writes: true,
        redo: zenith_pgformat::Lsn::INVALID,
        tli: 0,
        prev_tli: 0,
        time: 0,
        ..control.checkpoint_copy
    };
    let (a, b) = (counters(&ours), counters(&theirs));
    if a != b {
        found.push(format!("counters in pg_control: {a:?} and {b:?}"));
    }
    let same = ControlFile {
        state: ours.state,
        time: ours.time,
        checkpoint: ours.checkpoint,
        checkpoint_copy: ours.checkpoint_copy,
        unlogged_lsn: ours.unlogged_lsn,
        ..theirs.clone()
    };
    if same != ours {
        found.push(format!("pg_control: {ours:?} and {theirs:?}"));
    }
}

/// Pages of SLRUs below a data directory.
pub(crate) fn slru_pages(root: &Path) -> usize {
    let directories = &SAME[..4];
    let files = directories.iter().flat_map(|directory| {
        let directory = root.join(directory);
        names(&directory)
            .into_iter()
            .filter(|name| slru::parse_segment_name(name).is_some())
            .map(move |name| directory.join(name))
    });
    files.map(|file| std::fs::metadata(file).map_or(0, |file| file.len() as usize / BLCKSZ)).sum()
}
