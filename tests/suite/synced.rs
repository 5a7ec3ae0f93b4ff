//! What a command says is done is on disk: by the recorded system calls of the command, every file that it wrote was synced
//! after its last write, and every directory after its last new name, before it exited with 0.

use crate::harness::{Chain, TestStore, archive};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::process::Command;
use zenith_testkit::pg::{self, PgOptions};

const CALLS: &str = "trace=open,openat,creat,rename,renameat,renameat2,link,linkat,symlink,symlinkat,unlink,unlinkat,mkdir,mkdirat,\
                     write,pwrite64,writev,pwritev,pwritev2,ftruncate,fallocate,copy_file_range,sendfile,fsync,fdatasync,syncfs";

/// When something last changed and when a sync of it last began, in lines of the record.
#[derive(Clone, Copy, Default, Debug)]
struct Durable {
    changed: usize,
    synced: usize,
}

impl Durable {
    fn holds(self) -> bool {
        self.changed == 0 || self.synced > self.changed
    }
}

/// One system call that did not fail.
#[derive(Debug)]
struct Call {
    name: String,
    arguments: Vec<String>,
    /// The line where it was called, and the one where it had returned.
    begun: usize,
    done: usize,
}

/// The calls of a record of `strace -f -y`, in the order in which they returned.
fn calls(record: &str) -> Vec<Call> {
    let mut open: HashMap<&str, (usize, &str)> = HashMap::new();
    let mut calls = Vec::new();
    for (number, line) in (1..).zip(record.lines()) {
        let Some((process, text)) = line.split_once(' ') else { continue };
        let text = text.trim_start();
        if let Some(begin) = text.strip_suffix(" <unfinished ...>") {
            open.insert(process, (number, begin));
            continue;
        }
        let resumed = text.strip_prefix("<... ").and_then(|rest| rest.split_once(" resumed>"));
        let (begun, whole) = match resumed {
            Some((_, rest)) => match open.remove(process) {
                Some((begun, begin)) => (begun, format!("{begin}{rest}")),
                None => continue,
            },
            None => (number, text.to_owned()),
        };
        calls.extend(call(&whole, begun, number));
    }
    calls
}

fn call(text: &str, begun: usize, done: usize) -> Option<Call> {
    let (name, rest) = text.split_once('(')?;
    let (arguments, result) = rest.rsplit_once(" = ")?;
    // A short call is padded up to its result.
    let arguments = arguments.trim_end().strip_suffix(')')?;
    if result.starts_with('-') || result.starts_with('?') {
        return None;
    }
    Some(Call { name: name.to_owned(), arguments: split(arguments), begun, done })
}

/// Arguments, at the commas that lie outside of quotes and of a descriptor's path.
fn split(arguments: &str) -> Vec<String> {
    let mut found = vec![String::new()];
    let (mut quoted, mut path) = (false, false);
    for char in arguments.chars() {
        match char {
            '"' if !path => quoted = !quoted,
            '<' if !quoted => path = true,
            '>' if !quoted => path = false,
            ',' if !quoted && !path => {
                found.push(String::new());
                continue;
            }
            _ => {}
        }
        found.last_mut().expect("one").push(char);
    }
    found.into_iter().map(|argument| argument.trim().to_owned()).collect()
}

/// The path of `5</srv/store/a>`.
fn of_descriptor(argument: &str) -> Option<PathBuf> {
    let (_, path) = argument.split_once('<')?;
    Some(PathBuf::from(path.strip_suffix('>')?))
}

impl Call {
    /// The paths among the arguments, each joined to the directory descriptor before it.
    fn paths(&self) -> Vec<PathBuf> {
        let quoted = |argument: &str| Some(argument.strip_prefix('"')?.strip_suffix('"')?.to_owned());
        let mut found = Vec::new();
        let mut directory = None;
        for argument in &self.arguments {
            match quoted(argument) {
                Some(path) => found.push(directory.take().unwrap_or_else(|| PathBuf::from("/")).join(path)),
                None => directory = of_descriptor(argument),
            }
        }
        found
    }
}

/// What is known of files and directories below a folder.
#[derive(Default, Debug)]
struct Disk {
    files: BTreeMap<PathBuf, Durable>,
    directories: BTreeMap<PathBuf, Durable>,
}

impl Disk {
    fn after(calls: &[Call]) -> Disk {
        let mut disk = Disk::default();
        calls.iter().for_each(|call| disk.apply(call));
        disk
    }

    fn named(&mut self, path: &Path, at: usize) {
        if let Some(parent) = path.parent() {
            self.directories.entry(parent.to_owned()).or_default().changed = at;
        }
    }

    fn apply(&mut self, call: &Call) {
        let paths = call.paths();
        let descriptor = call.arguments.first().and_then(|argument| of_descriptor(argument));
        match (call.name.as_str(), paths.as_slice()) {
            ("open" | "openat" | "creat", [path]) => {
                let makes = call.name == "creat" || call.arguments.iter().any(|a| a.contains("O_CREAT"));
                // One that was there keeps its name; to sync the directory all the same costs nothing.
                if makes && !self.files.contains_key(path) {
                    self.files.entry(path.clone()).or_default().changed = call.done;
                    self.named(path, call.done);
                }
            }
            ("mkdir" | "mkdirat", [path]) => {
                self.directories.entry(path.clone()).or_default();
                self.named(path, call.done);
            }
            ("symlink" | "symlinkat", [.., path]) => self.named(path, call.done),
            ("unlink" | "unlinkat", [path]) => drop(self.files.remove(path)),
            ("link" | "linkat", [from, to]) => {
                let known = self.files.get(from).copied().unwrap_or_default();
                self.files.insert(to.clone(), known);
                self.named(to, call.done);
            }
            ("rename" | "renameat" | "renameat2", [from, to]) => self.rename(from, to, call.done),
            ("fsync" | "fdatasync", []) => {
                for known in [&mut self.files, &mut self.directories] {
                    if let Some(durable) = descriptor.as_ref().and_then(|path| known.get_mut(path)) {
                        durable.synced = call.begun;
                    }
                }
            }
            ("syncfs", []) => {
                let all = self.files.values_mut().chain(self.directories.values_mut());
                all.for_each(|durable| durable.synced = call.begun);
            }
            (name, _) => {
                // All the others write; the two that copy name what is written second or first.
                let written =
                    if name == "copy_file_range" { call.arguments.get(2) } else { call.arguments.first() };
                if let Some(path) = written.and_then(|argument| of_descriptor(argument)) {
                    self.files.entry(path).or_default().changed = call.done;
                }
            }
        }
    }

    fn rename(&mut self, from: &Path, to: &Path, at: usize) {
        for known in [&mut self.files, &mut self.directories] {
            let moved: Vec<PathBuf> = known.keys().filter(|path| path.starts_with(from)).cloned().collect();
            for path in moved {
                let durable = known.remove(&path).expect("listed");
                let rest = path.strip_prefix(from).expect("below");
                let new = if rest.as_os_str().is_empty() { to.to_owned() } else { to.join(rest) };
                known.insert(new, durable);
            }
        }
        self.named(to, at);
    }

    /// What is there below `root` and may be lost, and how many files and directories were looked at.
    fn lost(&self, root: &Path) -> (Vec<String>, usize) {
        let known = self.files.iter().chain(&self.directories);
        let there: Vec<_> = known.filter(|(path, _)| path.starts_with(root) && path.exists()).collect();
        let lost = there.iter().filter(|(_, durable)| !durable.holds());
        let lost = lost.map(|(path, durable)| format!("{}: {durable:?}", path.display())).collect();
        (lost, there.len())
    }
}

/// Runs a command of Zenith's under `strace`; what it made below `root` is all synced, `least` things of it.
fn synced(command: &Command, root: &Path, least: usize) {
    let record = pg::server_dir();
    let file = record.path().join("calls");
    let mut traced = pg::command("strace");
    traced.args(["-f", "-y", "-qq", "-s", "0", "-e", CALLS, "-e", "signal=none", "-o"]).arg(&file);
    traced.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => traced.env(name, value),
            None => traced.env_remove(name),
        };
    }
    println!("{}", pg::run(&mut traced));
    let record = std::fs::read_to_string(&file).expect("a record");
    let (lost, looked_at) = Disk::after(&calls(&record)).lost(root);
    assert!(lost.is_empty(), "not synced when {command:?} ended:\n{}", lost.join("\n"));
    assert!(looked_at >= least, "{looked_at} files and directories below {}: {command:?}", root.display());
}

#[test]
fn what_a_command_reports_done_is_synced_by_its_recorded_system_calls() {
    let options = PgOptions::default().initdb("--data-checksums").initdb("--wal-segsize=1");
    let chain = Chain::start(TestStore::folder(), options);
    let TestStore::Folder(home) = &chain.store else { panic!("a folder") };

    synced(&chain.zenith("zenith_push", &["base", "--checkpoint=fast"]), home.path(), 10);
    chain.primary.sql("CREATE TABLE t AS SELECT g, md5(g::text) FROM generate_series(1, 20000) g");
    chain.primary.sql("SELECT pg_switch_wal()");
    archive(&chain.primary);

    // The same bytes again are acknowledged again; in another store it is the first to come.
    let other = TestStore::folder();
    let TestStore::Folder(other_home) = &other else { panic!("a folder") };
    let segment =
        std::fs::read_dir(chain.plain()).expect("the plain archive").flatten().map(|entry| entry.path());
    let segment = segment.filter(|path| path.extension().is_none()).min().expect("a segment");
    let mut push = chain.zenith("zenith_push", &["wal"]);
    push.arg(&segment).envs(other.env());
    synced(&push, other_home.path(), 3);

    synced(&chain.zenith("zenith_slicedice", &[]), home.path(), 3);

    let restored = pg::server_dir();
    let data = restored.path().join("data");
    let mut restore = chain.zenith("zenith_restore", &["-D"]);
    restore.arg(&data);
    synced(&restore, restored.path(), 800);

    let fetched = restored.path().join("fetched");
    let name = segment.file_name().expect("a name").to_str().expect("ASCII");
    let mut fetch = chain.zenith("zenith_restore", &["wal", name]);
    fetch.arg(&fetched);
    synced(&fetch, restored.path(), 1);
}

#[test]
fn a_record_with_a_missing_sync_is_seen() {
    let home = tempfile::tempdir().expect("a directory");
    let path = |name: &str| home.path().join(name).display().to_string();
    std::fs::create_dir(home.path().join("d")).expect("made");
    std::fs::write(home.path().join("d/b"), "x").expect("written");
    let (directory, staged, file, root) = (path("d"), path("d/a"), path("d/b"), home.path().display());
    let lines = [
        format!("7 mkdirat(4<{root}>, \"d\", 0700) = 0"),
        format!("7 openat(AT_FDCWD</>, \"{staged}\", O_WRONLY|O_CREAT|O_EXCL, 0600) = 5<{staged}>"),
        format!("7 write(5<{staged}>, \"\"..., 3 <unfinished ...>"),
        format!("8 fsync(4<{root}>)          = 0"),
        "7 <... write resumed>) = 3".to_owned(),
        format!("7 fsync(5<{staged}>) = 0"),
        format!("7 rename(\"{staged}\", \"{file}\") = 0"),
        format!("7 fsync(6<{directory}>) = 0"),
    ];
    let lost = |left_out: Option<usize>| {
        let kept = lines.iter().enumerate().filter(|(number, _)| Some(*number) != left_out);
        let record: Vec<&str> = kept.map(|(_, line)| line.as_str()).collect();
        Disk::after(&calls(&record.join("\n"))).lost(home.path()).0
    };
    assert_eq!(lost(None), Vec::<String>::new());
    for (left_out, who) in
        [(3, home.path().to_owned()), (5, home.path().join("d/b")), (7, home.path().join("d"))]
    {
        let lost = lost(Some(left_out));
        assert!(
            lost.len() == 1 && lost[0].starts_with(&format!("{}: ", who.display())),
            "{left_out}: {lost:?}"
        );
    }
}
