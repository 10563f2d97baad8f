// clientgo is a plain client-go leader elector, to run beside ours on one Lease, or, with -resources, a replica as people
// write it today: one elector for each resource, whose informer and workers start when it leads. What a worker does is
// what tests/bench has ours do: it copies spec.change of each object to spec.seen.
// It prints one JSON line per event: leading, stopped, new-leader.
// client-go says stopped also to an elector that ends without having led.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/client-go/util/workqueue"
)

type event struct {
	Event    string `json:"event"`
	Identity string `json:"identity"`
	Time     string `json:"time"`
}

var printing sync.Mutex

func print(name, identity string) {
	printing.Lock()
	defer printing.Unlock()
	line, _ := json.Marshal(event{name, identity, time.Now().UTC().Format(time.RFC3339Nano)})
	fmt.Println(string(line))
}

func main() {
	kubeconfig := flag.String("kubeconfig", os.Getenv("KUBECONFIG"), "kubeconfig file; empty means in-cluster")
	namespace := flag.String("namespace", "default", "namespace of the Lease")
	lease := flag.String("lease", "", "name of the Lease")
	identity := flag.String("identity", "", "holder identity")
	duration := flag.Duration("lease-duration", 15*time.Second, "lease duration")
	deadline := flag.Duration("renew-deadline", 10*time.Second, "renew deadline")
	period := flag.Duration("retry-period", 2*time.Second, "retry period")
	release := flag.Bool("release-on-cancel", false, "release the Lease on SIGTERM and SIGINT")
	resources := flag.String("resources", "", "comma-separated plural resources of -group, each with an elector of its own")
	group := flag.String("group", "", "API group of -resources, version v1")
	flag.Parse()
	timings := timings{*duration, *deadline, *period, *release}
	config, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	if err == nil && *resources != "" && *identity != "" {
		replica := fmt.Sprintf("%s_%016x", *identity, rand.Uint64())
		err = runReplica(config, *namespace, replica, schema.GroupVersion{Group: *group, Version: "v1"}, strings.Split(*resources, ","), timings)
	} else if err == nil {
		if *lease == "" || *identity == "" {
			fmt.Fprintln(os.Stderr, "-lease and -identity are needed")
			os.Exit(2)
		}
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		err = elect(ctx, config, *namespace, *lease, *identity, timings, func(context.Context) {})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

type timings struct {
	duration, deadline, period time.Duration
	release                    bool
}

// runReplica runs an elector for each resource until it is told to stop. Each has a client of its own, so that client-go's
// rate limit does not hold up the others.
func runReplica(config *rest.Config, namespace, identity string, group schema.GroupVersion, resources []string, timings timings) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	config.QPS, config.Burst = 1000, 1000
	failed := make(chan error, len(resources))
	for _, resource := range resources {
		go func() {
			lead := func(ctx context.Context) { work(ctx, config, namespace, identity, group.WithResource(resource)) }
			failed <- elect(ctx, config, namespace, resource+"."+group.Group, identity, timings, lead)
		}()
	}
	for range resources {
		if err := <-failed; err != nil {
			return err
		}
	}
	return nil
}

// work fills an informer's cache and reconciles with four workers until the term ends.
func work(ctx context.Context, config *rest.Config, namespace, identity string, resource schema.GroupVersionResource) {
	client := dynamic.NewForConfigOrDie(config)
	factory := dynamicinformer.NewFilteredDynamicSharedInformerFactory(client, 0, namespace, nil)
	informer := factory.ForResource(resource).Informer()
	queue := workqueue.NewTypedRateLimitingQueue(workqueue.DefaultTypedControllerRateLimiter[string]())
	add := func(object any) {
		if key, err := cache.MetaNamespaceKeyFunc(object); err == nil {
			queue.Add(key)
		}
	}
	informer.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: add, UpdateFunc: func(_, object any) { add(object) }})
	factory.Start(ctx.Done())
	if !cache.WaitForCacheSync(ctx.Done(), informer.HasSynced) {
		return
	}
	for range 4 {
		go func() {
			for {
				key, stopped := queue.Get()
				if stopped {
					return
				}
				if err := reconcile(ctx, client.Resource(resource).Namespace(namespace), informer.GetStore(), key, identity); err != nil {
					queue.AddRateLimited(key)
				} else {
					queue.Forget(key)
				}
				queue.Done(key)
			}
		}()
	}
	<-ctx.Done()
	queue.ShutDown()
}

func reconcile(ctx context.Context, client dynamic.ResourceInterface, store cache.Store, key, identity string) error {
	found, exists, err := store.GetByKey(key)
	if err != nil || !exists {
		return err
	}
	object := found.(*unstructured.Unstructured)
	change, _, _ := unstructured.NestedInt64(object.Object, "spec", "change")
	seen, _, _ := unstructured.NestedInt64(object.Object, "spec", "seen")
	if change == seen {
		return nil
	}
	patch := fmt.Sprintf(`{"spec":{"seen":%d,"holder":%q}}`, change, identity)
	_, err = client.Patch(ctx, object.GetName(), types.MergePatchType, []byte(patch), metav1.PatchOptions{})
	return err
}

// elect takes part in the election of one Lease until the context ends.
func elect(ctx context.Context, config *rest.Config, namespace, lease, identity string, timings timings, lead func(context.Context)) error {
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock: &resourcelock.LeaseLock{
			LeaseMeta:  metav1.ObjectMeta{Namespace: namespace, Name: lease},
			Client:     client.CoordinationV1(),
			LockConfig: resourcelock.ResourceLockConfig{Identity: identity},
		},
		LeaseDuration:   timings.duration,
		RenewDeadline:   timings.deadline,
		RetryPeriod:     timings.period,
		ReleaseOnCancel: timings.release,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(ctx context.Context) {
				print("leading", identity)
				lead(ctx)
			},
			OnStoppedLeading: func() { print("stopped", identity) },
			OnNewLeader:      func(leader string) { print("new-leader", leader) },
		},
	})
	if err != nil {
		return err
	}
	// Run returns when leadership is lost; a standby again is what a long-lived process wants.
	for ctx.Err() == nil {
		elector.Run(ctx)
	}
	return nil
}
