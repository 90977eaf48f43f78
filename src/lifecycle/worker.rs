//! The one thread on which configurations are made: allocators keep what a thread has freed for that thread, and threads that
//! come and go would each keep a configuration's worth of memory.

use std::sync::mpsc::{Sender, channel};

type Job = Box<dyn FnOnce() + Send>;

/// A thread that does one job after the other.
pub struct Worker(Option<Sender<Job>>);

impl Worker {
    pub fn start() -> Self {
        let (sender, jobs) = channel::<Job>();
        let run = move || {
            while let Ok(job) = jobs.recv() {
                // A panic costs its job: whoever waits for it learns that it is gone.
                let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job));
            }
        };
        let started = std::thread::Builder::new().name("control".to_owned()).spawn(run);
        Self(started.is_ok().then_some(sender))
    }

    /// Does a job there and waits for it. `None`: it panicked, and the log has it.
    pub fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let (done, wait) = channel();
        let job = move || drop(done.send(job()));
        match &self.0 {
            Some(sender) => sender.send(Box::new(job)).ok()?,
            // Without a thread of its own it is done here.
            None => job(),
        }
        wait.recv().ok()
    }
}
