//! What a child does to itself between `fork` and `exec`.
//!
//! The standard library calls it in a copy of this process that has only the forking thread, so it
//! may neither allocate nor lock. It makes system calls, and what they need is made before.

use nix::errno::Errno;
use nix::libc;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::unistd::{Gid, Uid, getpid, getppid, setgid, setgroups, setuid};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

/// The network that a child has.
#[derive(Clone, Debug)]
pub enum Network {
    /// That of this process.
    Shared,
    /// A namespace of its own with nothing in it but loopback (network_namespaces(7)). For root.
    Own,
    /// The same within a user namespace (user_namespaces(7)), in which the child is the user that
    /// it is here.
    OwnOfUser(UserMap),
}

/// The lines that make a user and a group the same inside a user namespace as outside.
#[derive(Clone, Debug)]
pub struct UserMap {
    user: String,
    group: String,
}

impl UserMap {
    /// Of this process.
    pub fn of_this_process() -> Self {
        let line = |id: u32| format!("{id} {id} 1");
        let (user, group) = (nix::unistd::geteuid(), nix::unistd::getegid());
        Self { user: line(user.as_raw()), group: line(group.as_raw()) }
    }
}

/// All that a child does to itself. In this order.
pub struct Preparation {
    /// How much sooner than others it is ended when memory runs out (proc_pid_oom_score_adj(5)).
    pub oom_score: Option<&'static str>,
    /// Its network.
    pub network: Network,
    /// A list of users that it sees in place of the system's, which is for root.
    pub users: Option<PathBuf>,
    /// The user and group that it becomes.
    pub identity: Option<(u32, u32)>,
    /// The signal that it receives when the thread that spawns it ends, and so at the latest when
    /// this process does.
    pub death: Signal,
}

/// Has the child do all of `preparation`.
#[expect(unsafe_code, reason = "pre_exec is the only moment at which a child can do this")]
pub fn prepare(command: &mut Command, preparation: Preparation) {
    let parent = getpid();
    let prepare = move || {
        let Preparation { oom_score, network, users, identity, death } = &preparation;
        if let Some(score) = oom_score {
            put("/proc/self/oom_score_adj", score)?;
        }
        leave_network(network)?;
        if let Some(users) = users {
            let (none, private) = (None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE);
            unshare(CloneFlags::CLONE_NEWNS)?;
            mount(none, "/", none, private, none)?;
            mount(Some(users.as_path()), "/etc/passwd", none, MsFlags::MS_BIND, none)?;
        }
        if let Some((uid, gid)) = identity {
            setgroups(&[])?;
            setgid(Gid::from_raw(*gid))?;
            setuid(Uid::from_raw(*uid))?;
        }
        // Behind the change of user, which would clear it. It survives the `exec`.
        prctl::set_pdeathsig(*death)?;
        // The parent may have died before the line above; then nobody will send the signal.
        if getppid() != parent {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        Ok(())
    };
    // SAFETY: `prepare` makes system calls only, which are async-signal-safe, with arguments that
    // exist already, and builds its errors without allocating.
    unsafe {
        command.pre_exec(prepare);
    }
}

fn put(path: &str, text: &str) -> io::Result<()> {
    // A path as short as these is copied to the stack.
    File::options().write(true).open(path)?.write_all(text.as_bytes())
}

fn leave_network(network: &Network) -> io::Result<()> {
    match network {
        Network::Shared => return Ok(()),
        Network::Own => unshare(CloneFlags::CLONE_NEWNET)?,
        Network::OwnOfUser(map) => {
            unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET)?;
            put("/proc/self/setgroups", "deny")?;
            put("/proc/self/uid_map", &map.user)?;
            put("/proc/self/gid_map", &map.group)?;
        }
    }
    raise_loopback()
}

/// Switches the loopback interface on (netdevice(7)).
#[expect(unsafe_code, reason = "an interface has no safe calls")]
fn raise_loopback() -> io::Result<()> {
    nix::ioctl_read_bad!(flags_of_interface, libc::SIOCGIFFLAGS, libc::ifreq);
    nix::ioctl_write_ptr_bad!(set_flags_of_interface, libc::SIOCSIFFLAGS, libc::ifreq);
    let any = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: the structure is numbers and a union of numbers, all of which may be zero.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = from.cast_signed();
    }
    // SAFETY: the first call fills in the flags of the interface that is named, the second reads
    // them; between them they are the part of the union that is valid.
    unsafe {
        flags_of_interface(any.as_raw_fd(), &raw mut request)?;
        let up = libc::c_short::try_from(libc::IFF_UP).map_err(|_| Errno::EINVAL)?;
        request.ifr_ifru.ifru_flags |= up;
        set_flags_of_interface(any.as_raw_fd(), &raw const request)?;
    }
    Ok(())
}
