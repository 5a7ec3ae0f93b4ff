//! What a redo process may do once it serves: compute, sleep, wake its caller, complain, die.

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
pub(crate) fn enter() -> Result<(), String> {
    // SAFETY: the region stays mapped; PostgreSQL's descriptors are never used again.
    let closed = unsafe {
        libc::close(libc::STDIN_FILENO);
        libc::close(libc::STDOUT_FILENO);
        libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, 0_u32)
    };
    if closed != 0 {
        return Err(format!("cannot close descriptors: {} (Linux 5.9 or later is needed)", std::io::Error::last_os_error()));
    }
    let failed = |what: &dyn std::fmt::Display| format!("cannot install the seccomp filter: {what}");
    let rules: BTreeMap<_, _> = allowed().into_iter().map(|call| (call, Vec::new())).collect();
    let arch = std::env::consts::ARCH.try_into().map_err(|e| failed(&e))?;
    let filter = SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, arch);
    let program: BpfProgram = filter.and_then(TryInto::try_into).map_err(|e| failed(&e))?;
    seccompiler::apply_filter(&program).map_err(|e| failed(&e))
}
