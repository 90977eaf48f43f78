//! Events: what happens to the process and its backends, through `log` and `env_logger`, to standard error.

use env_logger::{Builder, Env};

/// Which events are shown unless `PORTCULLIS_LOG` says otherwise. Pingora logs an error for every client that leaves
/// early or speaks nonsense; such requests have their line in the access log.
const DEFAULT: &str = "info,pingora_load_balancing=off,pingora_core=error,pingora_core::apps=off,pingora_proxy=off,pingora_core::server=warn,rustls=off,h2=off";

/// Starts logging. Filters are those of `env_logger`, in `PORTCULLIS_LOG`.
pub fn init() {
    let mut builder = Builder::from_env(Env::new().filter_or("PORTCULLIS_LOG", DEFAULT));
    builder.format_target(false);
    // A second start in one process, as in tests, keeps the first.
    let _ = builder.try_init();
}
