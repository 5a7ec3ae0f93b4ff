//! Base images of a running server.

use super::{Bench, sizes};
use crate::data::Primary;
use crate::measure::{Runs, time};
use crate::peers::PgBackRest;
use crate::stores::{Place, Reached};
use crate::table::Line;
use zenith_testkit::pg;

pub(super) fn run(bench: &Bench) -> anyhow::Result<Vec<Line>> {
    let mut lines = Vec::new();
    for scale in sizes(bench.scale, &[50, 200]) {
        let primary = Primary::new(scale)?;
        lines.extend(bench.at_each_place(|place| at(bench, &primary, scale, place))?);
    }
    Ok(lines)
}

fn at(bench: &Bench, primary: &Primary, scale: u32, place: Place) -> anyhow::Result<Vec<Line>> {
    let [mut ours, mut theirs, mut floor] = [(); 3].map(|()| Runs::default());
    let (mut our_note, mut their_note) = (String::new(), String::new());
    for _ in 0..bench.repeats {
        let store = bench.stores.empty(place)?;
        ours.push(time(&mut push(&store, primary))?);
        our_note = stored(&store);
        let store = bench.stores.empty(place)?;
        let peer = PgBackRest::new(&store, primary)?;
        let before = store.traffic();
        theirs.push(time(peer.command().args(["--type=full", "backup"]))?);
        their_note = stored_since(before, &store);
        if place == Place::Folder {
            let directory = pg::server_dir();
            let mut plain = primary.server.client("pg_basebackup");
            plain.args(["--checkpoint=fast", "--wal-method=none", "-D"]).arg(directory.path().join("data"));
            floor.push(time(&mut plain)?);
        }
    }
    let line = |tool: &str, runs, note: &str| Line {
        what: format!("base image, scale {scale}, {}", place.name()),
        tool: tool.to_owned(),
        runs,
        work: None,
        note: note.to_owned(),
    };
    let mut lines = vec![
        line("zenith_push base", ours, &our_note),
        line("pgBackRest backup, zst, bundles", theirs, &their_note),
    ];
    if place == Place::Folder {
        lines.push(line("pg_basebackup, plain", floor, "the server's own stream, as files"));
    }
    Ok(lines)
}

/// `zenith_push base` of the primary.
pub(crate) fn push(store: &Reached, primary: &Primary) -> std::process::Command {
    let mut command = store.zenith("zenith_push");
    command.args(["base", "--checkpoint=fast", "-U", "postgres", "-h"]).arg(primary.server.socket());
    command
}

fn stored(store: &Reached) -> String {
    stored_since(Some([0; 3]), store)
}

fn stored_since(before: Option<[u64; 3]>, store: &Reached) -> String {
    match (store.stored(), store.traffic_since(before)) {
        (Some(bytes), _) => format!("{:.1} MB stored", bytes as f64 / 1e6),
        (_, Some([requests, sent, _])) => format!("{requests} requests, {:.1} MB sent", sent as f64 / 1e6),
        _ => String::new(),
    }
}
