/* Loaded into a process (LD_PRELOAD), it moves the wall clock by what the file $ZENITH_TEST_CLOCK says: seconds, or several
 * numbers of them, of which each reading of the clock takes the next one. What only ever goes forward stays as it is: that
 * is how Linux itself keeps the two apart when somebody sets the clock. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define OFFSETS_MAX 16

static atomic_uint readings;

static long offset(void)
{
	const char *path = getenv("ZENITH_TEST_CLOCK");
	long offsets[OFFSETS_MAX];
	unsigned count = 0;
	char text[512];
	char *at = text, *end;
	int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
	if (file < 0)
		return 0;
	ssize_t length = read(file, text, sizeof text - 1);
	close(file);
	text[length > 0 ? length : 0] = 0;
	while (count < OFFSETS_MAX) {
		long seconds = strtol(at, &end, 10);
		if (end == at)
			break;
		offsets[count++] = seconds;
		at = end;
	}
	return count ? offsets[atomic_fetch_add(&readings, 1) % count] : 0;
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
	int failed = (int) syscall(SYS_clock_gettime, clock, now);
	if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
		now->tv_sec += offset();
	return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
	struct timespec real;
	(void) zone;
	if (clock_gettime(CLOCK_REALTIME, &real))
		return -1;
	now->tv_sec = real.tv_sec;
	now->tv_usec = real.tv_nsec / 1000;
	return 0;
}

time_t time(time_t *now)
{
	struct timespec real;
	if (clock_gettime(CLOCK_REALTIME, &real))
		return -1;
	if (now)
		*now = real.tv_sec;
	return real.tv_sec;
}
