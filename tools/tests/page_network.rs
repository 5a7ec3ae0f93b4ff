//! `zenith_reader` on the network, with PostgreSQL's own psql as its client.

mod metrics;

use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use tempfile::TempDir;
use zenith_testkit::outcome::{ended, said, succeeds};
use zenith_testkit::pg::{Pg, PgOptions, StopMode, command, give_to_server, run, server_dir};
use zenith_testkit::store::TestStore;

const ALL: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const TEST: &str = "tttttttttttttttttttttttttttttttttttttttt";
const OTHERS: &str = "oooooooooooooooooooooooooooooooooooooooo";
const NEW: &str = "nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn";

fn zenith(store: &TestStore, program: &str, arguments: &[&str]) -> Command {
    let mut ours = command(program);
    for name in ["ZENITH_CLUSTER", "ZENITH_TIMELINE", "ZENITH_CONFIG"] {
        ours.env_remove(name);
    }
    ours.args(arguments).envs(store.env());
    ours
}

/// A store with the timelines "main" and "test".
fn recorded() -> TestStore {
    let store = TestStore::folder();
    let push = env!("CARGO_BIN_EXE_zenith_push");
    let archive = format!("archive_command = '{push} wal --store {} %p'", store.url());
    let pg = Pg::start_new(&PgOptions::default().conf("archive_mode = on").conf(&archive));
    let mut base = zenith(&store, push, &["base", "--checkpoint=fast", "-w"]);
    run(base.env("PGHOST", pg.socket()).env("PGUSER", "postgres"));
    let last = pg.sql("SELECT pg_walfile_name(pg_switch_wal())");
    pg.wait_for(&format!("(SELECT last_archived_wal >= '{last}' FROM pg_stat_archiver)"));
    pg.stop(StopMode::Fast);
    succeeds(&ended(&mut zenith(&store, env!("CARGO_BIN_EXE_zenith_slicedice"), &[])));
    let branch = ["branch", "create", "test", "--from", "main"];
    succeeds(&ended(&mut zenith(&store, env!("CARGO_BIN_EXE_zenith"), &branch)));
    store
}

/// A folder with a certificate for localhost, its key, its authority's certificate, and tokens.
struct Files(TempDir);

impl Files {
    fn new() -> Files {
        let files = Files(server_dir());
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut root = rcgen::CertificateParams::new(Vec::<String>::new()).expect("an authority");
        root.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        root.distinguished_name.push(rcgen::DnType::CommonName, "an authority");
        let authority = root.self_signed(&key).expect("its certificate");
        let issuer = rcgen::Issuer::new(root, key);
        let own = rcgen::KeyPair::generate().expect("a key");
        let server = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
        let server = server.signed_by(&own, &issuer).expect("a certificate");
        files.put("ca.crt", &authority.pem(), 0o644);
        files.put("server.crt", &server.pem(), 0o644);
        files.put("server.key", &own.serialize_pem(), 0o600);
        files.put("tokens", &format!("{ALL} main\n{TEST} main test\n{OTHERS} others\n"), 0o600);
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn put(&self, name: &str, content: &str, mode: u32) {
        std::fs::write(self.path(name), content).expect("written");
        std::fs::set_permissions(self.path(name), PermissionsExt::from_mode(mode)).expect("changed");
        give_to_server(&self.path(name));
    }

    /// A service that listens on any free port.
    fn service(&self, store: &TestStore, arguments: &[&str]) -> Command {
        let listen = ["--listen-addresses", "127.0.0.1", "-p", "0"];
        let mut service = zenith(store, env!("CARGO_BIN_EXE_zenith_reader"), &listen);
        service.current_dir(self.0.path()).args(arguments);
        service
    }
}

const TLS: [&str; 4] = ["--ssl-cert-file", "server.crt", "--ssl-key-file", "server.key"];

/// A service that listens; killed with the test.
struct Service {
    process: Child,
    lines: Receiver<String>,
    port: String,
    metrics: Option<String>,
}

impl Service {
    fn start(mut command: Command) -> Service {
        let mut process = command.stderr(Stdio::piped()).spawn().expect("started");
        let (sender, lines) = channel();
        let stderr = BufReader::new(process.stderr.take().expect("piped"));
        // What it says must not stop it, whether or not the test waits for it.
        std::thread::spawn(move || {
            stderr.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        let mut service = Service { process, lines, port: String::new(), metrics: None };
        let listens = service.says("listening on");
        for name in listens.split([' ', ',']) {
            match name.strip_prefix("127.0.0.1:") {
                Some(port) => service.port = port.to_owned(),
                None => service.metrics = name.starts_with("http:").then(|| name.to_owned()),
            }
        }
        service
    }

    /// The next line that has this in it.
    fn says(&self, words: &str) -> String {
        let line = self.lines.iter().find(|line| line.contains(words));
        line.unwrap_or_else(|| panic!("it ended without saying \"{words}\""))
    }

    fn send(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.process), signal).expect("it is there");
    }

    /// psql's answer to a query.
    fn psql(&self, how: &str, token: Option<&str>, query: &str) -> Output {
        let connection = format!("host=localhost hostaddr=127.0.0.1 port={} user=u {how}", self.port);
        let mut psql = command("psql");
        // Without certificates and passwords of whoever runs the tests.
        psql.env("HOME", "/nonexistent").args(["-X", "-A", "-t", "-w", "-c", query, "-d", &connection]);
        match token {
            Some(token) => psql.env("PGPASSWORD", token),
            None => psql.env_remove("PGPASSWORD"),
        };
        ended(&mut psql)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = (self.process.kill(), self.process.wait());
    }
}

/// It was refused, by all of these words.
#[track_caller]
fn refused(output: &Output, words: &[&str]) {
    let text = said(output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    for word in words {
        assert!(text.contains(word), "no \"{word}\" in: {text}");
    }
}

fn rows(output: &Output) -> Vec<String> {
    succeeds(output);
    let text = String::from_utf8(output.stdout.clone()).expect("text");
    text.lines().map(|line| line.split('|').next().unwrap_or_default().to_owned()).collect()
}

#[test]
fn psql_is_let_in_by_a_token_within_tls_and_by_nothing_else() {
    let (store, files) = (recorded(), Files::new());
    let tls = [&TLS[..], &["--token-file", "tokens"]].concat();
    let mut service = Service::start(files.service(&store, &tls));
    let verified = format!("sslmode=verify-full sslrootcert={}", files.path("ca.crt").display());
    let timelines = "SHOW timelines";
    assert_eq!(rows(&service.psql(&verified, Some(ALL), timelines)), ["main", "test"]);
    assert_eq!(rows(&service.psql(&verified, Some(TEST), timelines)), ["test"]);
    for version in ["TLSv1.2", "TLSv1.3"] {
        let how =
            format!("sslmode=require ssl_min_protocol_version={version} ssl_max_protocol_version={version}");
        assert_eq!(rows(&service.psql(&how, Some(ALL), timelines)).len(), 2);
    }
    let other = service.psql(&verified, Some(TEST), "pagestream main");
    assert!(said(&other).contains("\"test\" only"), "{}", said(&other));

    refused(&service.psql(&verified, None, timelines), &["no password supplied"]);
    for wrong in ["wrong", OTHERS] {
        refused(&service.psql(&verified, Some(wrong), timelines), &["FATAL", "no token of this service"]);
    }
    refused(&service.psql("sslmode=disable", Some(ALL), timelines), &["FATAL", "TLS connections only"]);
    // Its authority is not one that this machine knows.
    assert_eq!(service.psql("sslmode=verify-full", Some(ALL), timelines).status.code(), Some(2));
    changed_tokens_count_from_a_hangup_on(&service, &files, &verified);
    service.send(Signal::TERM);
    assert_eq!(service.process.wait().expect("ended").code(), Some(0));
}

fn changed_tokens_count_from_a_hangup_on(service: &Service, files: &Files, how: &str) {
    files.put("tokens", &format!("{NEW} main\n"), 0o600);
    service.send(Signal::HUP);
    service.says("read anew");
    assert_eq!(rows(&service.psql(how, Some(NEW), "SHOW timelines")).len(), 2);
    refused(&service.psql(how, Some(ALL), "SHOW timelines"), &["no token of this service"]);
    files.put("tokens", &format!("{ALL} main\n"), 0o644);
    service.send(Signal::HUP);
    let line = service.says("SIGHUP");
    assert!(line.contains("chmod") && line.contains("stays in use"), "{line}");
    assert_eq!(rows(&service.psql(how, Some(NEW), "SHOW timelines")).len(), 2);
}

#[test]
fn metrics_are_served_to_those_who_ask_for_them_as_they_should() {
    let (store, files) = (recorded(), Files::new());
    let tls = [&TLS[..], &["--token-file", "tokens", "--metrics", "127.0.0.1:0"]].concat();
    let service = Service::start(files.service(&store, &tls));
    let url = service.metrics.as_deref().expect("it serves metrics");
    let refused = "zenith_connections_refused_total{reason=\"wrong_token\"}";
    assert_eq!(metrics::sample(url, "zenith_connected_total"), 0.0);
    succeeds(&service.psql("sslmode=require", Some(ALL), "SHOW timelines"));
    service.psql("sslmode=require", Some("wrong"), "SHOW timelines");
    assert_eq!(metrics::sample(url, "zenith_connected_total"), 2.0);
    // It is told before it is counted.
    while metrics::sample(url, refused) == 0.0 {}
    assert!(metrics::sample(url, "zenith_store_requests_total{kind=\"get\"}") > 0.0);

    let head = metrics::asked(url, "HEAD /metrics");
    assert!(head.starts_with("HTTP/1.1 200") && head.ends_with("\r\n\r\n"), "{head}");
    assert!(metrics::asked(url, "POST /metrics").starts_with("HTTP/1.1 405"));
    assert!(metrics::asked(url, "GET /").starts_with("HTTP/1.1 404"));
    assert!(!metrics::asked(url, "no request").contains("200"));
    assert!(!metrics::asked(url, &format!("GET /{}", "x".repeat(40_000))).contains("200"));
    // Clients that say nothing leave room for others.
    let address = url.trim_start_matches("http://").trim_end_matches("/metrics");
    let silent: Vec<_> = (0..4).map(|_| std::net::TcpStream::connect(address).expect("connected")).collect();
    assert!(!metrics::samples(url).is_empty());
    drop(silent);
}

/// Without a store: what is wrong is told before it is asked.
fn starts(files: &Files, arguments: &[&str]) -> Output {
    let listen = ["--store", "file:///nowhere", "--listen-addresses", "127.0.0.1", "-p", "0"];
    let mut service = command(env!("CARGO_BIN_EXE_zenith_reader"));
    ended(service.current_dir(files.0.path()).args(listen).args(arguments))
}

#[test]
fn what_makes_the_network_safe_is_left_out_by_name_alone() {
    let files = Files::new();
    let usage = |arguments: &[&str], words: &[&str]| refused(&starts(&files, arguments), words);
    usage(&[], &["--ssl-cert-file", "--plain-text"]);
    usage(&TLS, &["--token-file", "--no-tokens"]);
    usage(&["--token-file", "tokens"], &["--ssl-cert-file"]);
    usage(&["--plain-text"], &["--no-tokens"]);
    usage(&["--plain-text", "--no-tokens", "--token-file", "tokens"], &["cannot be used with"]);
    usage(&["--no-tokens"], &["--ssl-cert-file"]);
    usage(&["--plain-text", "--no-tokens", "-k", "."], &["-p 0", "Unix socket"]);

    let fails = |arguments: &[&str], words: &[&str]| {
        let arguments = [&TLS[..], arguments].concat();
        zenith_testkit::outcome::fails(&starts(&files, &arguments), words);
    };
    fails(&["--token-file", "none"], &["none", "No such file"]);
    files.put("open", &format!("{ALL} main\n"), 0o640);
    fails(&["--token-file", "open"], &["open", "0640", "chmod"]);
    files.put("short", "hush main\n", 0o600);
    fails(&["--token-file", "short"], &["short", "line 1", "openssl rand"]);
    fails(&["--token-file", "tokens", "--cluster", "third"], &["no token for cluster \"third\""]);
    files.put("server.key", "no key", 0o600);
    fails(&["--token-file", "tokens"], &["server.key", "private key"]);
}

#[test]
fn plain_text_is_served_where_it_is_asked_for_by_name() {
    let (store, files) = (recorded(), Files::new());
    let service = Service::start(files.service(&store, &["--plain-text", "--no-tokens"]));
    for how in ["sslmode=disable", "sslmode=prefer"] {
        assert_eq!(rows(&service.psql(how, None, "SHOW timelines")).len(), 2);
    }
    refused(&service.psql("sslmode=require", None, "SHOW timelines"), &["does not support SSL"]);
}
