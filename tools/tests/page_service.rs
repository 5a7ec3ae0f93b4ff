//! `zenith_reader` as a process, beside the files of the server whose pages it serves.

mod metrics;

use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Stdio};
use zenith_pgformat::mask::{PageKind, mask};
use zenith_pgformat::{BLCKSZ, Fork, Lsn, Page, RelNode};
use zenith_reader::service::pagestream::{Answer, Code, Request, Wanted};
use zenith_testkit::on_each_store;
use zenith_testkit::outcome::{fails, succeeds};
use zenith_testkit::pg::{Pg, PgOptions, StopMode, command, run, server_dir};
use zenith_testkit::store::{Kind, TestStore};

on_each_store!(every_page_that_is_served_is_the_servers,);

fn zenith(store: &TestStore, program: &str, arguments: &[&str]) -> std::process::Command {
    let mut ours = command(program);
    for name in ["ZENITH_CLUSTER", "ZENITH_TIMELINE", "ZENITH_CONFIG"] {
        ours.env_remove(name);
    }
    ours.args(arguments).envs(store.env());
    ours
}

/// A relation of the server, and the kind of its pages.
struct Relation {
    node: RelNode,
    path: String,
    kind: PageKind,
}

fn relation(pg: &Pg, name: &str, kind: PageKind) -> Relation {
    let found = pg.sql(&format!(
        "SELECT pg_relation_filepath('{name}'), pg_relation_filenode('{name}'),
                (SELECT oid FROM pg_database WHERE datname = 'postgres')"
    ));
    let fields: Vec<&str> = found.split('|').collect();
    let number = |at: usize| fields[at].parse().expect("a number");
    Relation { node: RelNode { spc: 1663, db: number(2), rel: number(1) }, path: fields[0].to_owned(), kind }
}

/// A server that is stopped, its history in the store, and its last LSN.
fn recorded(store: &TestStore) -> (Pg, [Relation; 2], Lsn) {
    let push = env!("CARGO_BIN_EXE_zenith_push");
    let archive = format!("archive_command = '{push} wal --store {} %p'", store.url());
    let mut options = PgOptions::default()
        .initdb("--data-checksums")
        .conf("archive_mode = on")
        .conf("autovacuum = off")
        .conf(&archive);
    for (name, value) in store.credentials() {
        options = options.env(&name, &value);
    }
    let pg = Pg::start_new(&options);
    pg.sql("CREATE TABLE t AS SELECT g, md5(g::text) FROM generate_series(1, 20000) g");
    let mut base = zenith(store, push, &["base", "--checkpoint=fast", "-w"]);
    run(base.env("PGHOST", pg.socket()).env("PGUSER", "postgres"));
    pg.sql("CREATE INDEX i ON t (md5)");
    pg.sql("UPDATE t SET md5 = md5(md5) WHERE g % 7 = 0");
    pg.sql("DELETE FROM t WHERE g % 5 = 0");
    let relations = [relation(&pg, "t", PageKind::Heap), relation(&pg, "i", PageKind::Btree)];
    let lsn = pg.sql("SELECT pg_current_wal_insert_lsn()").parse().expect("an LSN");
    let last = pg.sql("SELECT pg_walfile_name(pg_switch_wal())");
    pg.wait_for(&format!("(SELECT last_archived_wal >= '{last}' FROM pg_stat_archiver)"));
    pg.stop(StopMode::Fast);
    succeeds(&zenith(store, env!("CARGO_BIN_EXE_zenith_slicedice"), &[]).output().expect("started"));
    (pg, relations, lsn)
}

/// A service that listens in a directory; killed with the test.
struct Service {
    process: Child,
    metrics: String,
}

impl Service {
    fn start(store: &TestStore, directory: &Path) -> Service {
        let metrics = ["--metrics", "127.0.0.1:0", "-k"];
        let mut service = zenith(store, env!("CARGO_BIN_EXE_zenith_reader"), &metrics);
        let mut service = service.arg(directory).stderr(Stdio::piped()).spawn().expect("started");
        let mut stderr = BufReader::new(service.stderr.take().expect("piped"));
        let listens =
            stderr.by_ref().lines().map_while(Result::ok).find(|line| line.contains("listening on"));
        let listens = listens.unwrap_or_else(|| panic!("it ended: {:?}", service.wait()));
        let metrics = listens.rsplit(", ").next().expect("a URL").to_owned();
        // What it says later is read by nobody, and must not stop it.
        std::thread::spawn(move || stderr.lines().for_each(drop));
        Service { process: service, metrics }
    }

    /// Asks it to stop, and gives its exit status.
    fn stop(mut self) -> Option<i32> {
        let pid = Pid::from_child(&self.process);
        kill_process(pid, Signal::TERM).expect("it is there");
        self.process.wait().expect("ended").code()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = (self.process.kill(), self.process.wait());
    }
}

/// A page stream of the timeline "main".
struct Stream(UnixStream);

impl Stream {
    fn open(socket: &Path) -> Stream {
        let mut stream = Stream(UnixStream::connect(socket).expect("connected"));
        let startup = [&(3u32 << 16).to_be_bytes()[..], b"user\0u\0\0"].concat();
        stream
            .0
            .write_all(&[&(4 + startup.len() as u32).to_be_bytes()[..], &startup].concat())
            .expect("sent");
        while stream.receive().0 != b'Z' {}
        stream.send(b'Q', b"pagestream main\0");
        assert_eq!(stream.receive().0, b'W');
        stream
    }

    fn send(&mut self, kind: u8, body: &[u8]) {
        let bytes = [&[kind][..], &(4 + body.len() as u32).to_be_bytes(), body].concat();
        self.0.write_all(&bytes).expect("sent");
    }

    fn receive(&mut self) -> (u8, Vec<u8>) {
        let mut head = [0; 5];
        self.0.read_exact(&mut head).expect("received");
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize - 4;
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).expect("received");
        (head[0], body)
    }

    fn get(&mut self, lsn: Lsn, wanted: Wanted) -> Answer {
        self.send(b'd', &Request { id: 1, lsn, wanted }.encode());
        let (kind, body) = self.receive();
        assert_eq!(kind, b'd');
        Answer::decode(&body.into()).expect("an answer").1
    }
}

fn what_was_done_is_counted(url: &str) {
    let sample = |name: &str| metrics::sample(url, name);
    for name in [
        "zenith_redo_pages_total",
        "zenith_redo_seconds_total",
        "zenith_store_requests_total{kind=\"get\"}",
        "zenith_store_received_bytes_total",
        "zenith_page_layers_count",
        "zenith_cache_bytes{cache=\"index\"}",
        "zenith_page_request_latency_seconds_sum{source=\"store\"}",
        "zenith_page_request_latency_seconds_count{source=\"block_cache\"}",
    ] {
        assert!(sample(name) > 0.0, "{name}");
    }
    assert!(sample("zenith_pages_total") > 80.0);
    assert_eq!(sample("zenith_connections"), 1.0);
}

/// Without what redo may leave otherwise.
fn masked(page: &[u8], kind: PageKind, block: u32) -> Page {
    let mut page: Page = page.try_into().expect("a page");
    mask(&mut page, kind, block);
    page
}

fn every_page_that_is_served_is_the_servers(kind: Kind) {
    let store = TestStore::new(kind);
    let (pg, relations, lsn) = recorded(&store);
    let home = server_dir();
    let service = Service::start(&store, home.path());

    let psql =
        command("psql").args(["-X", "-A", "-t", "-c", "SHOW timelines", "-h"]).arg(home.path()).output();
    let psql = psql.expect("started");
    succeeds(&psql);
    let timelines = String::from_utf8(psql.stdout).expect("text");
    assert!(timelines.starts_with("main|") && timelines.lines().count() == 1, "{timelines}");

    let mut stream = Stream::open(&home.path().join(".s.PGSQL.5432"));
    for Relation { node, path, kind } in &relations {
        let file = std::fs::read(pg.data().join(path)).expect("read");
        let (node, fork, blocks) = (*node, Fork::Main, (file.len() / BLCKSZ) as u32);
        assert!(blocks > 40, "{path} has {blocks} blocks");
        assert_eq!(stream.get(lsn, Wanted::Relation { node, fork }), Answer::Relation(Some(blocks)));
        for block in 0..blocks {
            let one = stream.get(lsn, Wanted::Pages { node, fork, block, count: 1 });
            let range =
                stream.get(lsn, Wanted::Pages { node, fork, block, count: 32.min(blocks - block) as u16 });
            let (Answer::Pages(one), Answer::Pages(range)) = (one, range) else { panic!("{path} {block}") };
            assert_eq!(one[0], range[0], "{path} {block}");
            let ours = masked(&one[0], *kind, block);
            let theirs = masked(&file[block as usize * BLCKSZ..][..BLCKSZ], *kind, block);
            assert!(ours == theirs, "{path} block {block} is not the server's");
        }
    }
    what_was_done_is_counted(&service.metrics);
    let node = relations[0].node;
    let early = stream.get(Lsn(1 << 20), Wanted::Relation { node, fork: Fork::Main });
    assert!(matches!(early, Answer::Error { code: Code::Gone, .. }), "{early:?}");
    let late = stream.get(Lsn(1 << 40), Wanted::Relation { node, fork: Fork::Main });
    assert!(matches!(late, Answer::Error { code: Code::NotYet, .. }), "{late:?}");

    let mut second = zenith(&store, env!("CARGO_BIN_EXE_zenith_reader"), &["-k"]);
    fails(&second.arg(home.path()).output().expect("started"), &[".s.PGSQL.5432", "already"]);
    assert_eq!(service.stop(), Some(0));
    assert!(!home.path().join(".s.PGSQL.5432").exists());
}
