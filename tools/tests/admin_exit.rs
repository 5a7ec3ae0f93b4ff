//! The exit statuses of `zenith`'s commands: 0 done, 1 failed, 2 wrong usage.

use std::process::Command;
use zenith_testkit::outcome::{ended, said, succeeds};
use zenith_testkit::pg::{Pg, PgOptions, command};
use zenith_testkit::store::TestStore;

fn zenith(program: &str, store: Option<&TestStore>, arguments: &[&str]) -> Command {
    let mut zenith = command(program);
    for name in ["ZENITH_STORE", "ZENITH_CLUSTER", "ZENITH_TIMELINE", "ZENITH_CONFIG"] {
        zenith.env_remove(name);
    }
    zenith.args(arguments).envs(store.map(TestStore::env).unwrap_or_default());
    zenith
}

#[test]
fn what_is_done_exits_with_0_what_fails_with_1_and_wrong_usage_with_2() {
    let admin = env!("CARGO_BIN_EXE_zenith");
    let (store, empty) = (TestStore::folder(), TestStore::folder());
    empty.put("elsewhere", b"so that there is a store");
    let pg = Pg::create(&PgOptions::default().initdb("--wal-segsize=1"));
    let directory = pg.data().display().to_string();
    let push = env!("CARGO_BIN_EXE_zenith_push");
    succeeds(&ended(&mut zenith(push, Some(&store), &["base", "--from-dir", &directory])));
    succeeds(&ended(&mut zenith(env!("CARGO_BIN_EXE_zenith_slicedice"), Some(&store), &[])));
    let listed = ended(&mut zenith(admin, Some(&store), &["status", "--json"]));
    let status: serde_json::Value = serde_json::from_slice(&listed.stdout).expect("JSON");
    let end =
        status["clusters"][0]["timelines"][0]["base_images"][0]["end"].as_str().expect("an LSN").to_owned();

    let page = ["page", "--rel", "1/1259", "--block", "0", "--lsn"];
    let page_at = |lsn| [&page[..], &[lsn]].concat();
    let (store, empty) = (Some(&store), Some(&empty));
    for (wanted, store, arguments) in [
        (0, store, vec!["status"]),
        (0, store, vec!["status", "--prometheus"]),
        (0, store, vec!["layers"]),
        (0, store, vec!["layers", "--version", "1", "--json"]),
        (0, store, page_at(&end)),
        (0, store, [&page_at(&end)[..], &["--explain"]].concat()),
        (0, empty, vec!["status"]),
        (0, None, vec!["--help"]),
        (0, None, vec!["--version"]),
        (1, empty, vec!["status", "--max-age", "1h"]),
        (1, store, vec!["status", "--cluster", "other"]),
        (1, store, vec!["status", "--timeline", "mian"]),
        (1, store, vec!["layers", "--version", "999"]),
        (1, store, vec!["layers", "--timeline", "mian"]),
        (1, empty, vec!["layers"]),
        (1, store, page_at("FFFF/0")),
        (1, store, page_at("0/100")),
        (1, store, vec!["page", "--rel", "1/1", "--block", "0", "--lsn", &end]),
        (1, store, vec!["page", "--rel", "1/1259", "--block", "4000000", "--lsn", &end]),
        (1, store, [&page_at(&end)[..], &["-o", "/nowhere/at/all"]].concat()),
        (1, empty, page_at(&end)),
        (2, None, vec!["status"]),
        (2, None, vec![]),
        (2, store, vec!["nonsense"]),
        (2, store, vec!["status", "--max-age", "soon"]),
        (2, store, vec!["status", "--json", "--prometheus"]),
        (2, store, vec!["layers", "--version", "newest"]),
        (2, store, page.to_vec()),
        (2, store, page_at("3000148")),
        (2, store, vec!["page", "--rel", "pg_class", "--block", "0", "--lsn", &end]),
        (2, store, vec!["status", "--timeline-id", "main"]),
    ] {
        let output = ended(&mut zenith(admin, store, &arguments));
        assert_eq!(output.status.code(), Some(wanted), "{arguments:?}: {}", said(&output));
        // A failure says why, and nothing else does.
        assert_eq!(said(&output).is_empty(), wanted == 0, "{arguments:?}: {}", said(&output));
    }
}
