//! Two base images whose copies run at the same time, so that each begins inside the other's window.

use crate::harness::{Chain, TestStore};
use crate::oracle::{Backup, compare};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use zenith_testkit::outcome;
use zenith_testkit::pg::{self, Pg, PgOptions, StopMode};

/// A copy has begun, and is far from its end, once the server has sent so much.
const BEGUN: usize = 4 << 20;

/// A base image that is being taken and waits, its copy begun, until it is let through.
struct Held {
    push: Child,
    open: Sender<()>,
}

impl Held {
    fn base_image(chain: &Chain) -> Held {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let port = listener.local_addr().expect("an address").port();
        let socket = chain.primary.socket().join(".s.PGSQL.5432");
        let ((begun, has_begun), (open, opened)) = (channel(), channel());
        let opened = Arc::new(Mutex::new(opened));
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (Ok(client), Ok(server)) = (client, UnixStream::connect(&socket)) else { return };
                let (begun, opened) = (begun.clone(), Arc::clone(&opened));
                let (mut from, mut to) =
                    (client.try_clone().expect("a socket"), server.try_clone().expect("a socket"));
                std::thread::spawn(move || {
                    std::io::copy(&mut from, &mut to).and_then(|_| to.shutdown(Shutdown::Both))
                });
                std::thread::spawn(move || answers(server, client, &begun, &opened));
            }
        });
        let mut push = chain.zenith("zenith_push", &["base", "--checkpoint=fast"]);
        push.env("PGHOST", "127.0.0.1").env("PGPORT", port.to_string()).stdin(Stdio::null());
        let push = push.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("started");
        has_begun.recv().expect("the copy begins");
        Held { push, open }
    }

    /// Lets it come to its end.
    fn end(self) {
        self.open.send(()).expect("it waits");
        outcome::succeeds(&self.push.wait_with_output().expect("it ends"));
    }
}

/// Passes on what the server says, and waits once after [`BEGUN`] bytes of it.
fn answers(mut server: UnixStream, mut client: TcpStream, begun: &Sender<()>, opened: &Mutex<Receiver<()>>) {
    let mut buffer = vec![0; 64 << 10];
    let mut passed = 0;
    while let Ok(read @ 1..) = server.read(&mut buffer) {
        if passed <= BEGUN && passed + read > BEGUN {
            let go_on = || opened.lock().ok()?.recv().ok();
            if begun.send(()).is_err() || go_on().is_none() {
                break;
            }
        }
        passed += read;
        if client.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    drop(client.shutdown(Shutdown::Both));
}

fn change(server: &Pg, value: &str) -> String {
    server.sql(&format!("UPDATE t SET v = v || '{value}' WHERE i % 3 = 0"));
    server.sql(&format!("CREATE TABLE made_{value} AS SELECT generate_series(1, 500) AS i"));
    server.sql(&format!("SELECT pg_create_restore_point('{value}')"))
}

#[test]
fn base_images_that_begin_inside_each_others_window_both_serve_from_their_ends_on() {
    let options =
        PgOptions::default().initdb("--data-checksums").initdb("--wal-segsize=1").conf("autovacuum = off");
    let chain = Chain::start(TestStore::folder(), options);
    let primary = &chain.primary;
    primary.sql("CREATE TABLE t AS SELECT i, 'base' AS v FROM generate_series(1, 20000) i");
    let backup = Backup::take(&chain, &[]);

    let first = Held::base_image(&chain);
    change(primary, "first_begun");
    let second = Held::base_image(&chain);
    let inside = change(primary, "both_begun");
    first.end();
    change(primary, "first_ended");
    second.end();
    change(primary, "both_ended");
    chain.archive();
    chain.run("zenith_slicedice", &[]);

    let status = pg::run(&mut chain.zenith("zenith", &["status", "--json"]));
    let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
    let images = status["clusters"][0]["timelines"][0]["base_images"].as_array().expect("a list").clone();
    let confirmed: Vec<_> = images.iter().map(|image| &image["confirmed"]).collect();
    assert_eq!(confirmed, [true, true], "{status}");
    let home = pg::server_dir();
    let data = home.path().join("data").display().to_string();
    let mut restore = chain.zenith("zenith_restore", &["--lsn", &inside, "-D", &data]);
    outcome::fails(&outcome::ended(&mut restore), &[&inside, "base image"]);
    for name in ["first_ended", "both_ended"] {
        let restored = chain.restore(&["--name", name]);
        let oracle = backup.recover(&chain, &[&format!("recovery_target_name = '{name}'")]);
        oracle.stop(StopMode::Fast);
        assert!(compare(&restored, &oracle).pages > 500, "{name}");
    }
}
