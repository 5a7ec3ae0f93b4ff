//! Asking for a password at the terminal, as pg_basebackup does.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;

/// The longest password that is read, in bytes.
const MAX: u64 = 4096;

/// Asks at the controlling terminal, without echo; `None` where there is none.
pub fn ask() -> Option<String> {
    let mut terminal = File::options().read(true).write(true).open("/dev/tty").ok()?;
    let quiet = Quiet::start(&terminal)?;
    terminal.write_all(b"Password: ").ok()?;
    let mut line = String::new();
    let read = BufReader::new(std::io::Read::take(&terminal, MAX)).read_line(&mut line);
    drop(quiet);
    let _ = (&terminal).write_all(b"\n");
    read.ok()?;
    Some(line.trim_end_matches(['\r', '\n']).to_owned())
}

/// While it lives the terminal does not echo.
struct Quiet {
    fd: i32,
    before: libc::termios,
}

impl Quiet {
    fn start(terminal: &File) -> Option<Quiet> {
        let fd = terminal.as_raw_fd();
        // SAFETY: termios is plain data for which zeros are valid; the descriptor is open.
        let mut settings: libc::termios = unsafe { std::mem::zeroed() };
        // SAFETY: as above.
        if unsafe { libc::tcgetattr(fd, &raw mut settings) } != 0 {
            return None;
        }
        let quiet = Quiet { fd, before: settings };
        settings.c_lflag &= !libc::ECHO;
        // SAFETY: as above.
        (unsafe { libc::tcsetattr(fd, libc::TCSAFLUSH, &raw const settings) } == 0).then_some(quiet)
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        // SAFETY: the descriptor outlives this value, see `ask`.
        unsafe { libc::tcsetattr(self.fd, libc::TCSAFLUSH, &raw const self.before) };
    }
}
