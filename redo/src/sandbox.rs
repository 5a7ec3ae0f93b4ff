//! What a redo process may do once it serves: compute, sleep, wake its caller, complain, die. Here, and not in the
//! library that the process loads, so that it can be tested without a server.

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
use std::collections::BTreeMap;

/// The system calls that redo needs. Memory: palloc is malloc. Signals and ids: `abort()` after a PANIC.
fn allowed() -> Vec<i64> {
    vec![
        libc::SYS_futex,
        libc::SYS_brk,
        libc::SYS_mmap,
        libc::SYS_munmap,
        libc::SYS_mremap,
        libc::SYS_madvise,
        libc::SYS_write,
        libc::SYS_clock_gettime,
        libc::SYS_getpid,
        libc::SYS_gettid,
        libc::SYS_tgkill,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigaction,
        libc::SYS_rt_sigreturn,
        libc::SYS_restart_syscall,
        libc::SYS_exit,
        libc::SYS_exit_group,
    ]
}

/// Closes every descriptor but stderr and installs the filter; any other system call kills the process.
pub fn enter() -> Result<(), String> {
    // SAFETY: the region stays mapped; PostgreSQL's descriptors are never used again.
    let closed = unsafe {
        libc::close(libc::STDIN_FILENO);
        libc::close(libc::STDOUT_FILENO);
        libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, 0_u32)
    };
    if closed != 0 {
        return Err(format!(
            "cannot close descriptors: {} (Linux 5.9 or later is needed)",
            std::io::Error::last_os_error()
        ));
    }
    let failed = |what: &dyn std::fmt::Display| format!("cannot install the seccomp filter: {what}");
    let rules: BTreeMap<_, _> = allowed().into_iter().map(|call| (call, Vec::new())).collect();
    let arch = std::env::consts::ARCH.try_into().map_err(|e| failed(&e))?;
    let filter = SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, arch);
    let program: BpfProgram = filter.and_then(TryInto::try_into).map_err(|e| failed(&e))?;
    seccompiler::apply_filter(&program).map_err(|e| failed(&e))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How a child ends that does something in the sandbox: its exit code, or minus the signal.
    fn in_sandbox(deed: fn()) -> i32 {
        // SAFETY: the child makes system calls only, but for the filter, for which the C library readies its heap at fork.
        unsafe {
            let child = libc::fork();
            assert!(child >= 0);
            if child == 0 {
                if enter().is_err() {
                    libc::_exit(99);
                }
                deed();
                libc::_exit(7);
            }
            let mut status = 0;
            assert_eq!(libc::waitpid(child, &raw mut status, 0), child);
            if libc::WIFSIGNALED(status) { -libc::WTERMSIG(status) } else { libc::WEXITSTATUS(status) }
        }
    }

    #[test]
    fn what_redo_needs_is_allowed() {
        let deed = || {
            let memory = vec![1_u8; 1 << 22];
            // SAFETY: plain system calls.
            unsafe {
                libc::write(2, memory.as_ptr().cast(), 0);
                libc::getpid();
            }
        };
        assert_eq!(in_sandbox(deed), 7);
    }

    #[test]
    fn files_sockets_and_programs_end_the_process() {
        // SAFETY: plain system calls.
        let deeds: [fn(); 3] = [
            || assert_ne!(unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDONLY) }, 0),
            || assert_ne!(unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0) }, 0),
            || assert_ne!(unsafe { libc::fork() }, 0),
        ];
        for deed in deeds {
            assert_eq!(in_sandbox(deed), -libc::SIGSYS);
        }
    }

    #[test]
    fn no_descriptor_but_stderr_stays_open() {
        // SAFETY: a plain system call.
        let deed = || unsafe {
            if libc::write(1, c"x".as_ptr().cast(), 1) >= 0 || libc::write(3, c"x".as_ptr().cast(), 1) >= 0 {
                libc::_exit(1);
            }
        };
        assert_eq!(in_sandbox(deed), 7);
    }
}
