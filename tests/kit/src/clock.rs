//! A wall clock that a test sets, for the processes that it starts: `clock.c` is loaded into them.

use crate::pg::{give_to_server, run, server_dir};
use std::path::PathBuf;
use std::process::Command;
use tempfile::TempDir;

/// Seconds of an hour.
pub const HOUR: i64 = 3600;
/// Seconds of a year.
pub const YEAR: i64 = 365 * 86400;

/// The wall clock of some processes. It begins as the machine's.
#[derive(Debug)]
pub struct WallClock {
    folder: TempDir,
}

impl WallClock {
    /// Compiles what moves the clock, with the C compiler that the build needs anyway.
    pub fn new() -> WallClock {
        let clock = WallClock { folder: server_dir() };
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/src/clock.c");
        let compiler = ["-std=c11", "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o"];
        run(Command::new("cc").args(compiler).arg(clock.library()).arg(source));
        give_to_server(&clock.library());
        clock.set(&[0]);
        clock
    }

    fn library(&self) -> PathBuf {
        self.folder.path().join("clock.so")
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("offsets")
    }

    /// From now on the clock is so many seconds ahead of the machine's, or behind it. With several, a process has the first
    /// when it looks at the clock for the first time, then the next one, and so on, round and round.
    pub fn set(&self, seconds: &[i64]) {
        let text: Vec<String> = seconds.iter().map(i64::to_string).collect();
        let next = self.folder.path().join("next");
        std::fs::write(&next, text.join(" ")).expect("written");
        give_to_server(&next);
        // Whoever reads it meanwhile reads the old one or the new one.
        std::fs::rename(&next, self.file()).expect("renamed");
    }

    /// What the environment of a process needs to have this clock; its children have it, too.
    pub fn env(&self) -> Vec<(String, String)> {
        let (library, file) = (self.library(), self.file());
        [("LD_PRELOAD", library), ("ZENITH_TEST_CLOCK", file)]
            .map(|(name, path)| (name.to_owned(), path.display().to_string()))
            .to_vec()
    }
}

impl Default for WallClock {
    fn default() -> WallClock {
        WallClock::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Since 1970, as a process reads the clock four times.
    fn seconds(clock: &WallClock) -> Vec<i64> {
        let text = "for i in 1 2 3 4; do printf '%(%s)T ' -1; done";
        let printed = run(Command::new("bash").args(["-c", text]).envs(clock.env()));
        printed.split_whitespace().map(|seconds| seconds.parse().unwrap()).collect()
    }

    #[test]
    fn a_process_has_the_time_that_is_set_and_may_see_it_jump() {
        let clock = WallClock::new();
        let now = seconds(&clock)[0];
        assert!(now > 1_767_225_600, "before 2026: {now}");
        let century = 100 * YEAR;
        let (is_now, is_then) = (now..now + HOUR, now + century..now + century + HOUR);
        clock.set(&[century]);
        let ahead = seconds(&clock);
        assert!(ahead.len() == 4 && ahead.iter().all(|at| is_then.contains(at)), "{now}: {ahead:?}");
        clock.set(&[0, century, century]);
        let jumping = seconds(&clock);
        assert!(
            jumping.iter().any(|at| is_now.contains(at)) && jumping.iter().any(|at| is_then.contains(at)),
            "{now}: {jumping:?}"
        );
    }
}
