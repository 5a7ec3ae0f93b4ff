//! One run: workload, archive, slice, and the comparison at each LSN.

use crate::files;
use crate::oracle::Oracle;
use crate::primary::Primary;
use crate::suites::Ran;
use crate::wal::Archived;
use std::collections::BTreeMap;
use zenith_pgformat::Lsn;
use zenith_pgformat::wal::RmgrId;
use zenith_testkit::mask::compare_directories;
use zenith_testkit::pg::{self, PgOptions, StopMode};

/// At how many LSNs a run is compared; the last is the end of the run.
#[derive(Clone, Copy)]
pub(crate) struct Points(pub(crate) usize);

/// What a run compared.
#[derive(Default)]
pub(crate) struct Figures {
    cases: usize,
    unexpected: usize,
    records: usize,
    by_rmgr: BTreeMap<RmgrId, usize>,
    wal_bytes: u64,
    lsns: usize,
    files: usize,
    pages: usize,
    slru_pages: usize,
    dumps: usize,
}

impl Figures {
    /// Records of one resource manager.
    pub(crate) fn records_of(&self, rmgr: RmgrId) -> usize {
        self.by_rmgr.get(&rmgr).copied().unwrap_or(0)
    }
}

/// Runs a workload on an archived primary, slices, and compares at `points` LSNs spread over its records.
///
/// With `ZENITH_DIFFERENTIAL_KEEP` set, what differs is left in place: the store, the archive, and the two directories of each LSN.
pub(crate) fn differential(
    name: &str,
    options: PgOptions,
    points: Points,
    workload: impl FnOnce(&Primary) -> Ran,
) -> Figures {
    let options = options.conf("checkpoint_timeout = 30s").conf("max_connections = 60");
    let primary = Primary::start(options);
    println!("{}", primary.zenith("zenith_push", &["base", "--checkpoint=fast"]));
    let mut oracle = Oracle::new(primary.base_backup(), primary.plain());
    let from = primary.insert_lsn();
    let ran = workload(&primary);
    let to = primary.insert_lsn();
    primary.archive();
    println!("{}", primary.zenith("zenith_slicedice", &[]));

    let archived = Archived::read(primary.plain(), primary.segment_size(), from, to);
    let mut figures = Figures {
        cases: ran.cases,
        unexpected: ran.unexpected,
        records: archived.records(),
        by_rmgr: archived.by_rmgr.clone(),
        wal_bytes: archived.bytes,
        ..Figures::default()
    };
    let chosen = archived.spread(points.0);
    let mut different = Vec::new();
    for (index, lsn) in chosen.iter().enumerate() {
        let dumped = index + 1 == chosen.len() || index % 5 == 0;
        different.extend(compare_at(&primary, &mut oracle, *lsn, dumped, &mut figures));
    }
    report(name, &figures, different.len());
    if !different.is_empty() && keep() {
        eprintln!("store {}, archive {}", primary.store().display(), primary.plain().display());
        primary.server.stop(StopMode::Immediate);
        std::mem::forget(primary);
    }
    assert!(different.is_empty(), "{} differences:\n{}", different.len(), different.join("\n"));
    figures
}

/// Whether what differs is left in place.
fn keep() -> bool {
    std::env::var_os("ZENITH_DIFFERENTIAL_KEEP").is_some()
}

/// What differs at one LSN.
fn compare_at(
    primary: &Primary,
    oracle: &mut Oracle,
    lsn: Lsn,
    dumped: bool,
    figures: &mut Figures,
) -> Vec<String> {
    let theirs = oracle.at(lsn);
    let ours = primary.restore(lsn);
    let mut different = files::differences(ours.data(), theirs.data());
    match compare_directories(ours.data(), theirs.data()) {
        Ok(compared) => {
            figures.files += compared.files;
            figures.pages += compared.pages;
        }
        Err(differences) => different.extend(differences),
    }
    figures.lsns += 1;
    figures.slru_pages += files::slru_pages(ours.data());
    if dumped {
        figures.dumps += 1;
        ours.start();
        theirs.start();
        if dump(&ours) != dump(&theirs) {
            different.push("the dumps differ".to_owned());
        }
    }
    println!("{lsn}: {} differences, {} pages so far", different.len(), figures.pages);
    let kept = format!("{lsn} ({} and {})", ours.data().display(), theirs.data().display());
    if !different.is_empty() && keep() {
        for server in [ours, theirs] {
            if dumped {
                server.stop(StopMode::Fast);
            }
            std::mem::forget(server);
        }
    }
    different.into_iter().map(|line| format!("{kept}: {line}")).collect()
}

/// `pg_dumpall` without what is random in it. Two recoveries of the same WAL agree in sequences too.
fn dump(server: &pg::Pg) -> String {
    let text =
        pg::run(server.client("pg_dumpall").args(["--no-unlogged-table-data", "-d", "dbname=postgres"]));
    text.lines()
        .filter(|line| !line.starts_with("\\restrict") && !line.starts_with("\\unrestrict"))
        .collect::<Vec<_>>()
        .join("\n")
}

/// The figures as JSON, printed and beside the build.
fn report(name: &str, figures: &Figures, differences: usize) {
    let by_rmgr = figures.by_rmgr.iter().map(|(rmgr, count)| (rmgr.to_string(), (*count).into()));
    let json = serde_json::json!({
        "workload": name,
        "cases": figures.cases,
        "unexpected_output": figures.unexpected,
        "records": figures.records,
        "records_by_resource_manager": serde_json::Map::from_iter(by_rmgr),
        "wal_bytes": figures.wal_bytes,
        "lsns": figures.lsns,
        "files": figures.files,
        "pages": figures.pages,
        "slru_pages": figures.slru_pages,
        "dumps": figures.dumps,
        "differences": differences,
    });
    println!("{json:#}");
    let test = std::env::current_exe().expect("own path");
    let target = test.ancestors().nth(3).expect("target directory");
    let folder = target.join("differential");
    std::fs::create_dir_all(&folder).expect("a folder beside the build");
    let file = folder.join(name.replace(", ", " ").replace(' ', "-")).with_extension("json");
    std::fs::write(file, format!("{json:#}\n")).expect("figures");
}
