//! A store that was prepared once and is copied for each test: a base image, WAL that is sliced in three runs, WAL that
//! is archived and not sliced, and what may be said of it while nothing is wrong.

use crate::harness::{Chain, TestStore, zenith_bin};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use tempfile::TempDir;
use zenith_pgformat::wal_name::{WalFile, WalSegSize};
use zenith_testkit::pg::{self, PgOptions, StopMode};
use zenith_testkit::store::Kind;

/// See the module.
pub(crate) struct World {
    objects: Vec<(String, bytes::Bytes)>,
    /// `main/timelines/<id>/`.
    pub(crate) timeline: String,
    /// The path of a table below the data directory. Every run of the slicer has seen its block 0 change.
    pub(crate) relation: String,
    /// How far WAL is sliced.
    pub(crate) sliced: String,
    /// How far it is archived.
    pub(crate) end: String,
    /// The number of rows in the table there.
    pub(crate) rows: u64,
    /// Where the base image's WAL begins; reads begin behind its end.
    pub(crate) base_redo: String,
    /// The segment that holds that WAL.
    pub(crate) base_segment: String,
    /// The archived segments, ascending.
    pub(crate) segments: Vec<WalSegment>,
    /// Those of them that are sliced to their ends.
    pub(crate) sliced_segments: usize,
    /// The segment that would be archived next.
    pub(crate) next: WalSegment,
}

/// A segment as PostgreSQL wrote it.
#[derive(Clone)]
pub(crate) struct WalSegment {
    pub(crate) name: String,
    pub(crate) content: Vec<u8>,
}

/// What a command did.
#[derive(Debug)]
pub(crate) struct Ran {
    line: String,
    pub(crate) code: Option<i32>,
    pub(crate) stdout: Vec<u8>,
    pub(crate) said: String,
}

impl Ran {
    /// Runs it to its end.
    pub(crate) fn of(command: &mut Command) -> Ran {
        Ran::ended(format!("{command:?}"), command.output().expect("it starts"))
    }

    /// Of one that was started with its outputs piped.
    pub(crate) fn ended(line: String, output: std::process::Output) -> Ran {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!said.contains("panicked"), "{line}: {said}");
        Ran { line, code: output.status.code(), stdout: output.stdout, said }
    }

    #[track_caller]
    pub(crate) fn succeeds(self) -> Ran {
        assert_eq!(self.code, Some(0), "{}: {}", self.line, self.said);
        self
    }

    /// Fails with exit code 1 and says all of the words.
    #[track_caller]
    pub(crate) fn fails(self, words: &[&str]) -> Ran {
        self.ends(1, words)
    }

    /// Ends with this exit code and says all of the words.
    #[track_caller]
    pub(crate) fn ends(self, code: i32, words: &[&str]) -> Ran {
        assert_eq!(self.code, Some(code), "{}: {}", self.line, self.said);
        for word in words {
            assert!(self.said.contains(word), "no \"{word}\" from {}: {}", self.line, self.said);
        }
        self
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

/// One of Zenith's commands on a store, as the server's user.
pub(crate) fn command(store: &TestStore, program: &str, arguments: &[&str]) -> Command {
    let mut command = pg::command(zenith_bin(program));
    let foreign = |name: &std::ffi::OsString| {
        ["ZENITH_", "AWS_"].iter().any(|of| name.to_string_lossy().starts_with(of))
    };
    for (name, _) in std::env::vars_os().filter(|(name, _)| foreign(name)) {
        command.env_remove(name);
    }
    command.args(arguments).envs(store.env()).stdin(Stdio::null());
    command
}

/// [`command`], run to its end.
pub(crate) fn run(store: &TestStore, program: &str, arguments: &[&str]) -> Ran {
    Ran::of(&mut command(store, program, arguments))
}

/// A restore into a directory that does not exist; it does not exist afterwards either, unless the restore succeeds.
pub(crate) fn restore(store: &TestStore, arguments: &[&str]) -> (TempDir, Ran) {
    let home = pg::server_dir();
    let data = home.path().join("data").display().to_string();
    let ran = run(store, "zenith_restore", &[&["-D", &data], arguments].concat());
    if ran.code != Some(0) {
        assert!(is_empty(home.path()), "left behind: {ran:?}");
    }
    (home, ran)
}

/// Whether a directory has no entries.
pub(crate) fn is_empty(directory: &Path) -> bool {
    std::fs::read_dir(directory).expect("a directory").next().is_none()
}

/// `zenith_restore wal` of a file: what it did, and the file if it was written.
pub(crate) fn restore_wal(store: &TestStore, name: &str) -> (Ran, Option<Vec<u8>>) {
    let home = pg::server_dir();
    let target = home.path().join("RECOVERYXLOG");
    let ran = run(store, "zenith_restore", &["wal", name, &target.display().to_string()]);
    let written = std::fs::read(&target).ok();
    let entries = std::fs::read_dir(home.path()).expect("a directory").count();
    assert_eq!(entries, usize::from(written.is_some()), "left behind: {ran:?}");
    (ran, written)
}

/// A file of WAL in a directory of its own, to be pushed.
pub(crate) fn wal_file(name: &str, content: &[u8]) -> (TempDir, String) {
    let home = pg::server_dir();
    let path = home.path().join(name);
    std::fs::write(&path, content).expect("written");
    pg::give_to_server(&path);
    (home, path.display().to_string())
}

/// The LSN behind a segment of 1 MB.
fn end_of(segment: &str) -> String {
    let size = WalSegSize::new(1 << 20).expect("valid");
    match WalFile::parse(segment, size) {
        Some(WalFile::Segment { segment, .. }) => size.start_of(segment + 1).to_string(),
        other => panic!("{segment}: {other:?}"),
    }
}

impl World {
    /// Made by whoever asks first.
    pub(crate) fn shared() -> &'static World {
        static SHARED: OnceLock<World> = OnceLock::new();
        SHARED.get_or_init(World::build)
    }

    fn build() -> World {
        let options = PgOptions::default()
            .initdb("--data-checksums")
            .initdb("--wal-segsize=1")
            .conf("autovacuum = off")
            .conf("full_page_writes = on")
            // One more would make a round begin with a full-page image, behind which no older layer is needed.
            .conf("checkpoint_timeout = 1d");
        let chain = Chain::start(TestStore::folder(), options);
        let sql = |text: &str| chain.primary.sql(text);
        sql("CREATE TABLE t (i int, x text) WITH (fillfactor = 50)");
        sql("INSERT INTO t SELECT i, md5(i::text) FROM generate_series(1, 5000) i");
        // A file that is larger than what a command may write in tests of a full disk.
        sql("CREATE TABLE big (x text)");
        sql("ALTER TABLE big ALTER COLUMN x SET STORAGE PLAIN");
        sql("INSERT INTO big SELECT repeat('x', 8000) FROM generate_series(1, 1200)");
        chain.run("zenith_push", &["base", "--checkpoint=fast"]);
        for round in 0..3 {
            sql(&format!(
                "UPDATE t SET x = 'round {round}' WHERE i = 1; INSERT INTO t SELECT 0, md5(i::text) FROM generate_series(1, 5000) i"
            ));
            sql(&format!("SELECT pg_create_restore_point('round {round}')"));
            chain.archive();
            chain.run("zenith_slicedice", &[]);
        }
        let status = chain.run("zenith", &["status", "--json"]);
        let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
        let status = &status["clusters"][0]["timelines"][0];
        let lsn = |value: &serde_json::Value| value.as_str().expect("an LSN").to_owned();
        let (sliced, base_redo) = (lsn(&status["sliced"]["lsn"]), lsn(&status["base_images"][0]["redo"]));
        // A push that was overtaken while it made the timeline leaves an identity that nothing leads to.
        let timeline = status["id"].as_str().expect("an id").to_owned();
        let base_segment = sql(&format!("SELECT pg_walfile_name('{base_redo}'::pg_lsn + 1)"));
        let segments_in = || {
            let mut names: Vec<String> = std::fs::read_dir(chain.plain())
                .expect("the plain archive")
                .map(|entry| entry.expect("an entry").file_name().into_string().expect("text"))
                .filter(|name| name.len() == 24)
                .collect();
            names.sort();
            names
        };
        let sliced_segments = segments_in().len();
        for round in 3..6 {
            sql(&format!(
                "UPDATE t SET x = 'round {round}' WHERE i = 1; INSERT INTO t SELECT 0, md5(i::text) FROM generate_series(1, 5000) i"
            ));
        }
        sql("SELECT pg_create_restore_point('kept')");
        chain.archive();
        let rows = sql("SELECT count(*) FROM t").parse().expect("a number");
        let relation = sql("SELECT pg_relation_filepath('t')");
        let names = segments_in();
        // Not where the server is by now: it writes snapshots for standbys of its own accord.
        let end = end_of(names.last().expect("segments"));
        let objects = chain.store.objects();
        sql("INSERT INTO t SELECT 0, 'after the end'");
        chain.archive();
        let name = segments_in().into_iter().find(|name| !names.contains(name)).expect("one more segment");
        let segment = |name: String| WalSegment {
            content: std::fs::read(chain.plain().join(&name)).expect("a segment"),
            name,
        };
        let next = segment(name);
        let segments = names.into_iter().map(segment).collect();
        chain.primary.stop(StopMode::Immediate);
        let timeline = format!("main/timelines/{timeline}/");
        World {
            objects,
            timeline,
            relation,
            sliced,
            end,
            rows,
            base_redo,
            base_segment,
            segments,
            sliced_segments,
            next,
        }
    }

    /// A store of its own with all objects.
    pub(crate) fn store(&self, kind: Kind) -> TestStore {
        TestStore::filled(kind, &self.objects)
    }

    /// Makes a copy what it was.
    pub(crate) fn reset(&self, store: &TestStore) {
        let known = |name: &String| self.objects.iter().any(|(object, _)| object == name);
        let names = store.list("");
        names.iter().filter(|name| !known(name)).for_each(|name| store.delete(name));
        for (name, content) in &self.objects {
            if !names.contains(name) || store.get(name) != *content {
                store.put(name, content);
            }
        }
    }

    /// Everything but what is to be left out.
    pub(crate) fn objects_without(&self, left_out: impl Fn(&str) -> bool) -> Vec<(String, bytes::Bytes)> {
        self.objects.iter().filter(|(name, _)| !left_out(name)).cloned().collect()
    }

    /// A store without what is to be left out.
    pub(crate) fn store_without(&self, kind: Kind, left_out: impl Fn(&str) -> bool) -> TestStore {
        TestStore::filled(kind, &self.objects_without(left_out))
    }

    /// A command that failed has changed and removed nothing; what it has added are versions of the manifest (an epoch
    /// that was taken) and objects that no version names.
    #[track_caller]
    pub(crate) fn lost_nothing(&self, store: &TestStore, but: &str) {
        for (name, content) in &self.objects {
            if name != but && !name.ends_with("/manifest-hint") {
                assert!(store.get(name) == *content, "{name} is another one");
            }
        }
        let added = |name: &String| !self.objects.iter().any(|(object, _)| object == name);
        let names = store.list("");
        for name in names.iter().filter(|name| added(name)) {
            let harmless = ["manifest/", "manifest-hint", "layers/", "index/"];
            let below = name.strip_prefix(&self.timeline);
            let harmless = below.is_some_and(|below| harmless.iter().any(|kind| below.starts_with(kind)));
            assert!(harmless && !name.contains('#'), "{name} was added");
        }
    }

    /// Everything that was archived is sliced, and reads as it should.
    #[track_caller]
    pub(crate) fn is_whole(&self, store: &TestStore) {
        let healthy = self.store(Kind::Folder);
        let page = self.page(&healthy, &self.end).succeeds();
        assert!(self.page(store, &self.end).succeeds().stdout == page.stdout, "another page");
        let status = run(store, "zenith", &["status", "--cluster", "main"]).succeeds().text();
        assert!(status.contains(&format!("to {}", self.end)), "{status}");
    }

    /// The objects of its layers.
    pub(crate) fn layers(&self) -> Vec<String> {
        let layers = format!("{}layers/", self.timeline);
        self.objects.iter().map(|(name, _)| name.clone()).filter(|name| name.starts_with(&layers)).collect()
    }

    /// What each layer object holds: "image", "delta" or "events".
    pub(crate) fn layer_kinds(&self, store: &TestStore) -> BTreeMap<String, String> {
        let listing = run(store, "zenith", &["layers", "--json"]).succeeds().text();
        let listing: serde_json::Value = serde_json::from_str(&listing).expect("JSON");
        let text = |value: &serde_json::Value| value.as_str().expect("text").to_owned();
        let layers = listing["layers"].as_array().expect("a list");
        layers
            .iter()
            .map(|layer| {
                let object = text(&layer["object"]);
                let from = object.find("main/timelines/").expect("below the cluster");
                (object[from..].to_owned(), text(&layer["kind"]))
            })
            .collect()
    }

    /// The object of an archived segment.
    pub(crate) fn segment(&self, name: &str) -> String {
        format!("{}wal/{}/{name}.zst", self.timeline, &name[..8])
    }

    /// `zenith page` of the table's block 0.
    pub(crate) fn page(&self, store: &TestStore, lsn: &str) -> Ran {
        run(store, "zenith", &["page", "--rel", &self.relation, "--block", "0", "--lsn", lsn, "-o", "-"])
    }
}
