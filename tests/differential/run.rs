//! One run: workload, archive, slice, and the comparison at each LSN.

use crate::files;
use crate::oracle::Oracle;
use crate::primary::Primary;
use crate::wal::Archived;
use zenith_pgformat::Lsn;
use zenith_testkit::mask::compare_directories;
use zenith_testkit::pg::{self, PgOptions, StopMode};

/// At how many LSNs a run is compared; the last is the end of the run.
#[derive(Clone, Copy)]
pub(crate) struct Points(pub(crate) usize);

/// What a run compared.
#[derive(Default, Debug)]
struct Figures {
    records: usize,
    wal_bytes: u64,
    lsns: usize,
    files: usize,
    pages: usize,
    slru_pages: usize,
    dumps: usize,
}

/// Runs a workload on an archived primary, slices, and compares at `points` LSNs spread over its records.
///
/// With `ZENITH_DIFFERENTIAL_KEEP` set, what differs is left in place: the store, the archive, and the two directories of each LSN.
pub(crate) fn differential(name: &str, options: PgOptions, points: Points, workload: impl FnOnce(&Primary)) {
    let options = options.conf("checkpoint_timeout = 30s").conf("max_connections = 60");
    let primary = Primary::start(options);
    println!("{}", primary.zenith("zenith_push", &["base", "--checkpoint=fast"]));
    let mut oracle = Oracle::new(primary.base_backup(), primary.plain());
    let from = primary.insert_lsn();
    workload(&primary);
    let to = primary.insert_lsn();
    primary.archive();
    println!("{}", primary.zenith("zenith_slicedice", &[]));

    let archived = Archived::read(primary.plain(), primary.segment_size(), from, to);
    let mut figures =
        Figures { records: archived.ends.len(), wal_bytes: archived.bytes, ..Figures::default() };
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
    println!("{lsn}: {} differences, {figures:?}", different.len());
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

/// A line of figures, also as JSON beside the build.
fn report(name: &str, figures: &Figures, differences: usize) {
    println!("differential {name}: {differences} differences, {figures:?}");
    let Some(target) = std::env::var_os("CARGO_TARGET_DIR") else { return };
    let folder = std::path::Path::new(&target).join("differential");
    std::fs::create_dir_all(&folder).expect("a folder beside the build");
    let json = serde_json::json!({
        "workload": name,
        "records": figures.records,
        "wal_bytes": figures.wal_bytes,
        "lsns": figures.lsns,
        "files": figures.files,
        "pages": figures.pages,
        "slru_pages": figures.slru_pages,
        "dumps": figures.dumps,
        "differences": differences,
    });
    std::fs::write(folder.join(format!("{name}.json")), format!("{json:#}\n")).expect("figures");
}
