//! Servers and data directories of PostgreSQL 15 that were built with other sizes of blocks and segments: refused by
//! name before anything is stored.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::thread::JoinHandle;
use zenith_testkit::on_each_store;
use zenith_testkit::outcome::{ended, fails, succeeds};
use zenith_testkit::pg::{Pg, PgOptions, command};
use zenith_testkit::store::{Kind, TestStore};

on_each_store!(
    a_running_server_with_other_sizes_is_refused_by_the_size,
    a_stopped_directory_with_other_sizes_is_refused_by_the_size,
);

fn push(store: &TestStore, arguments: &[&str]) -> Command {
    let mut push = command(env!("CARGO_BIN_EXE_zenith_push"));
    for name in ["ZENITH_CLUSTER", "ZENITH_TIMELINE", "ZENITH_CONFIG"] {
        push.env_remove(name);
    }
    push.args(arguments).envs(store.env());
    push
}

/// What a server of PostgreSQL 15 answers when it is asked what it is.
const ANSWERS: [(&str, &str); 7] = [
    ("SHOW wal_level", "replica"),
    ("SHOW block_size", "8192"),
    ("SHOW wal_block_size", "8192"),
    ("SHOW segment_size", "1GB"),
    ("SHOW wal_segment_size", "16MB"),
    ("SHOW archive_mode", "on"),
    ("SHOW data_checksums", "on"),
];

/// A server that answers like one of PostgreSQL 15, but for one answer, and gives the commands that it was sent.
fn server(question: &'static str, answer: &'static str) -> (String, JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
    let port = listener.local_addr().expect("an address").port().to_string();
    let serving = std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().expect("a client");
        start_up(&mut socket);
        let mut asked = Vec::new();
        while let Some(query) = query(&mut socket) {
            let columns = match ANSWERS.iter().find(|(known, _)| *known == query) {
                _ if query == question => vec![answer],
                Some((_, usual)) => vec![*usual],
                None if query == "IDENTIFY_SYSTEM" => vec!["7000000000000000001", "1", "0/1000000", ""],
                None => Vec::new(),
            };
            socket.write_all(&row(&columns)).expect("answered");
            asked.push(query);
        }
        asked
    });
    (port, serving)
}

/// Start-up without encryption or password (protocol-flow.html).
fn start_up(socket: &mut TcpStream) {
    loop {
        let mut length = [0; 4];
        socket.read_exact(&mut length).expect("a packet");
        let mut body = vec![0; u32::from_be_bytes(length) as usize - 4];
        socket.read_exact(&mut body).expect("a packet");
        if u32::from_be_bytes(body[..4].try_into().expect("a code")) >> 16 == 3 {
            break;
        }
        socket.write_all(b"N").expect("answered");
    }
    let mut answer = message(b'R', &[0; 4]);
    answer.extend(message(b'S', b"server_version\x0015.4\0"));
    answer.extend(message(b'S', b"in_hot_standby\0off\0"));
    answer.extend(message(b'Z', b"I"));
    socket.write_all(&answer).expect("answered");
}

/// The next query, until the client leaves.
fn query(socket: &mut TcpStream) -> Option<String> {
    let mut head = [0; 5];
    socket.read_exact(&mut head).ok()?;
    let mut body = vec![0; u32::from_be_bytes(head[1..].try_into().expect("a length")) as usize - 4];
    socket.read_exact(&mut body).ok()?;
    (head[0] == b'Q').then(|| String::from_utf8_lossy(&body).trim_end_matches('\0').to_owned())
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut message = vec![kind];
    message.extend((body.len() as u32 + 4).to_be_bytes());
    message.extend(body);
    message
}

/// One row of text columns, and the end of the answer.
fn row(columns: &[&str]) -> Vec<u8> {
    let count = (columns.len() as u16).to_be_bytes();
    let (mut description, mut data) = (count.to_vec(), count.to_vec());
    for column in columns {
        description.extend(b"x\0");
        // Table, column, type text, its length, modifier, format.
        description.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 25, 255, 255, 255, 255, 255, 255, 0, 0]);
        data.extend((column.len() as u32).to_be_bytes());
        data.extend(column.as_bytes());
    }
    let mut answer = message(b'T', &description);
    answer.extend(message(b'D', &data));
    answer.extend(message(b'C', b"SHOW\0"));
    answer.extend(message(b'Z', b"I"));
    answer
}

fn a_running_server_with_other_sizes_is_refused_by_the_size(kind: Kind) {
    for (question, answer, words) in [
        ("SHOW block_size", "16384", ["block_size 16384", "8192 only"]),
        ("SHOW wal_block_size", "65536", ["wal_block_size 65536", "8192 only"]),
        ("SHOW segment_size", "2GB", ["segment_size 2GB", "1GB only"]),
        ("SHOW wal_segment_size", "3MB", ["wal_segment_size", "3MB"]),
        ("SHOW wal_level", "minimal", ["wal_level is minimal", "wal_level = replica"]),
    ] {
        let store = TestStore::new(kind);
        let (port, serving) = server(question, answer);
        let base = ["base", "-h", "127.0.0.1", "-p", &port, "-U", "x", "-w"];
        fails(&ended(&mut push(&store, &base)), &words);
        let asked = serving.join().expect("the server");
        assert!(asked.iter().any(|query| query == question), "{asked:?}");
        assert!(!asked.iter().any(|query| query.contains("BACKUP")), "{asked:?}");
        assert_eq!(store.list(""), Vec::<String>::new());
    }
}

fn a_stopped_directory_with_other_sizes_is_refused_by_the_size(kind: Kind) {
    let store = TestStore::new(kind);
    let pg = Pg::create(&PgOptions::default().initdb("--wal-segsize=1"));
    let path = pg.data().join("global/pg_control");
    let whole = std::fs::read(&path).expect("pg_control");
    let directory = pg.data().display().to_string();
    // Offsets in ControlFileData (catalog/pg_control.h); its checksum, at 288, fits.
    for (offset, value, words) in [
        (216, 16384u32, ["blcksz = 16384", "8192"]),
        (220, 262_144, ["relseg_size = 262144", "131072"]),
        (224, 16384, ["xlog_blcksz = 16384", "8192"]),
        (228, 3 << 20, ["xlog_seg_size = 3145728", "power of two"]),
        (204, 4, ["maxAlign = 4", "8"]),
        (252, 2, ["data_checksum_version = 2", "0 or 1"]),
        (8, 1201, ["version 1201", "PostgreSQL 15"]),
        (12, 202_107_181, ["202107181", "PostgreSQL 15"]),
    ] {
        let mut altered = whole.clone();
        altered[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
        let crc = crc32c::crc32c(&altered[..288]);
        altered[288..292].copy_from_slice(&crc.to_le_bytes());
        std::fs::write(&path, altered).expect("altered");
        let words = [&words[..], &["pg_control"]].concat();
        fails(&ended(&mut push(&store, &["base", "--from-dir", &directory])), &words);
        assert_eq!(store.list(""), Vec::<String>::new());
    }
    let mut damaged = whole.clone();
    damaged[100] ^= 1;
    std::fs::write(&path, damaged).expect("altered");
    fails(&ended(&mut push(&store, &["base", "--from-dir", &directory])), &["pg_control is damaged", "CRC"]);
    std::fs::write(&path, &whole[..200]).expect("altered");
    fails(&ended(&mut push(&store, &["base", "--from-dir", &directory])), &["pg_control", "200 bytes"]);
    assert_eq!(store.list(""), Vec::<String>::new());
    std::fs::write(&path, whole).expect("put back");
    succeeds(&ended(&mut push(&store, &["base", "--from-dir", &directory])));
}
