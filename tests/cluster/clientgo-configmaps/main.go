// clientgo-configmaps is a plain elector of an old client-go, to run beside ours on one ConfigMap, or on a ConfigMap and a
// Lease: today's client-go has these locks no more. With -lock leases it is one on a Lease.
//
// It prints one JSON line per event: leading, stopped. With -resource it writes who it is to the object "it" of that
// resource of the group observer.leasehold.dev for as long as it leads, as tests/observer does. With -term it gives up the
// lock after a random time of at most that, half of the time with a release and half without, and competes again after
// -pause: what makes a thousand takeovers.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand"
	"os"
	"os/signal"
	"syscall"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

func main() {
	kubeconfig := flag.String("kubeconfig", os.Getenv("KUBECONFIG"), "kubeconfig file; empty means in-cluster")
	kind := flag.String("lock", "configmaps", "configmaps, configmapsleases or leases")
	namespace := flag.String("namespace", "default", "namespace of the lock")
	name := flag.String("name", "", "name of the lock")
	identity := flag.String("identity", "", "holder identity")
	duration := flag.Duration("lease-duration", 15*time.Second, "lease duration")
	deadline := flag.Duration("renew-deadline", 10*time.Second, "renew deadline")
	period := flag.Duration("retry-period", 2*time.Second, "retry period")
	resource := flag.String("resource", "", "plural resource whose object is written while this leads")
	term := flag.Duration("term", 0, "give up the lock after a random time of at most this")
	pause := flag.Duration("pause", 0, "how long to let others go first after that")
	flag.Parse()
	config, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	check(err)
	config.QPS, config.Burst = 1000, 1000
	// As client-go's NewFromKubeconfig has it for its locks, and shorter.
	config.Timeout = *deadline / 2
	client, err := kubernetes.NewForConfig(config)
	check(err)
	objects, err := dynamic.NewForConfig(config)
	check(err)
	lock, err := resourcelock.New(*kind, *namespace, *name, client.CoreV1(), client.CoordinationV1(), resourcelock.ResourceLockConfig{Identity: *identity})
	check(err)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	group := schema.GroupVersionResource{Group: "observer.leasehold.dev", Version: "v1", Resource: *resource}
	for ctx.Err() == nil {
		// One that stops without a release leaves the lock to expire, as if it had crashed.
		release := *term == 0 || rand.Intn(2) == 0
		running, cancel := context.WithCancel(ctx)
		elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
			Lock:            lock,
			LeaseDuration:   *duration,
			RenewDeadline:   *deadline,
			RetryPeriod:     *period,
			ReleaseOnCancel: release,
			Callbacks: leaderelection.LeaderCallbacks{
				OnStartedLeading: func(ctx context.Context) {
					say("leading", *identity)
					if *term > 0 {
						time.AfterFunc(time.Duration(rand.Int63n(int64(*term))), cancel)
					}
					for *resource != "" && ctx.Err() == nil {
						patch := fmt.Sprintf(`{"spec":{"holder":%q,"uid":"client-go","transitions":0}}`, *identity)
						_, _ = objects.Resource(group).Namespace(*namespace).Patch(ctx, "it", types.MergePatchType, []byte(patch), metav1.PatchOptions{})
						time.Sleep(20 * time.Millisecond)
					}
				},
				OnStoppedLeading: func() { say("stopped", *identity) },
			},
		})
		check(err)
		elector.Run(running)
		cancel()
		select {
		case <-ctx.Done():
		case <-time.After(*pause):
		}
	}
}

func say(event, identity string) {
	line, _ := json.Marshal(map[string]string{"event": event, "identity": identity, "time": time.Now().UTC().Format(time.RFC3339Nano)})
	fmt.Println(string(line))
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
